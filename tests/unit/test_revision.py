"""What a declaration changes in the study that it continues, and what of it may be changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import json_to_distribution

from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, JSONValue, Searched, StudySpec, TrialNews
from orchestrator.revision import Extension, changes, continued
from orchestrator.search import Search, as_it_was, describe, extension, parameters

A = Axis("a", (32, 64))
KIND = Axis("kind", ("sgd", "adam"))
LR = Searched("lr", "float", 1e-4, 1e-1, log=True)
ACT = Searched("act", "categorical", choices=("relu", "gelu"))
PARAMS: dict[str, JSONValue] = {
    "a": 32,
    "kind": "sgd",
    "lr": 0.01,
    "act": "relu",
    "wd": 0.0,
    "n": 3,
}


def study(**changed: Any) -> StudySpec:
    made = StudySpec(
        name="study",
        directions=("minimize",),
        metrics=("loss",),
        objective={"_target_": "train"},
        params=PARAMS,
        grid=(A, KIND),
        search=(LR, ACT),
        budget=Budget(20, 2),
    )
    return replace(made, **changed)


def stored(spec: StudySpec) -> StudySpec:
    """As it is read from the database."""
    return StudySpec.from_json(json.loads(json.dumps(spec.to_json())))


def extended(old: StudySpec, **changed: Any) -> Extension:
    old = stored(old)
    made = extension(old, continued(replace(old, revision=1, **changed), old))
    again = stored(made.spec)
    assert again == made.spec
    assert continued(study(**changed), again).spec_hash() == again.spec_hash()
    return made


def whole(made: Extension, path: str) -> Any:
    """Every value that the parameter has had, as Optuna's tables hold it."""
    return parameters(made.spec)[path].distribution


def test_the_same_in_another_order_or_form_changes_nothing() -> None:
    old = stored(study())
    other = study(
        grid=(replace(KIND, values=("adam", "sgd")), replace(A, values=(64, 32.0))),
        search=(replace(ACT, choices=("gelu", "relu")), replace(LR, high=0.1)),
    )
    again = continued(other, old)
    assert changes(old, again) == ()
    assert again.to_json() == old.to_json()
    assert list(again.cells()) == list(old.cells()), "cells are numbered by the order of the axes"


def test_a_study_without_revisions_is_stored_as_before() -> None:
    data = study().to_json()
    assert "revision" not in data
    assert not any("stored" in item for item in [*data["grid"], *data["search"]])


def test_values_are_appended_and_what_is_taken_away_stays_known() -> None:
    made = extended(
        study(), grid=(replace(A, values=(16, 64)), replace(KIND, values=("lion", "adam")))
    )
    a, kind = made.spec.grid
    assert (a.values, a.stored) == ((16, 64), (32, 64, 16))
    assert (kind.values, kind.stored) == (("lion", "adam"), ("sgd", "adam", "lion"))
    assert whole(made, "kind").choices == ("sgd", "adam", "lion")
    # from 16 to 64 it is ordered by its logarithm, in all trials alike
    assert (whole(made, "a").low, whole(made, "a").high, whole(made, "a").log) == (16, 64, True)
    assert made.distributions.keys() == {"a", "kind"}
    assert made.spec.n_cells == 4
    assert made.changes == (
        "grid a: [32,64] -> [16,64]",
        'grid kind: ["sgd","adam"] -> ["lion","adam"]',
    )
    back = extended(made.spec, grid=(A, KIND))
    assert back.spec.grid[1].values == ("sgd", "adam")
    assert back.spec.grid[1].stored == ("sgd", "adam", "lion")
    assert back.spec.revision == 3


def test_a_range_is_stored_as_wide_as_it_ever_was_and_searched_as_it_is_now() -> None:
    narrow = extended(study(), search=(replace(LR, low=1e-3, high=1e-2), ACT))
    assert (whole(narrow, "lr").low, whole(narrow, "lr").high) == (1e-4, 1e-1)
    assert narrow.distributions == {}, "nothing to write"
    assert dict(describe(narrow.spec))["lr"] == "search: float from 0.001 to 0.01 (log)"
    moved = extended(narrow.spec, search=(replace(LR, low=1e-2, high=1.0), ACT))
    assert (whole(moved, "lr").low, whole(moved, "lr").high) == (1e-4, 1.0)
    assert [json_to_distribution(d).high for d in moved.distributions["lr"]] == [1e-1, 1.0]  # type: ignore[attr-defined]
    widest = extended(moved.spec, search=(replace(LR, low=1e-4, high=1.0), ACT))
    lr = next(item for item in widest.spec.search if item.path == "lr")
    assert lr.stored is None, "it is searched in all that it has been"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2"])
def test_no_sampler_leaves_what_is_searched_now(sampler: str) -> None:
    from orchestrator.settings import sampler_settings

    old = study(sampler=sampler_settings(sampler))
    made = extended(
        old,
        search=(
            replace(LR, low=1e-3, high=1e-2),
            replace(ACT, choices=("elu", "gelu", "tanh")),
            Searched("n", "int", 2, 5),
        ),
    )
    before, after = Search(stored(old)), Search(made.spec)
    news = []
    for number in range(24):
        told = before.ask({"a": 32, "kind": "sgd"}, ticket=number, retry=0)
        internal = {p.name: p.internal for p in told.params} | {"n": 3.0}
        params = tuple(parameters(made.spec)[name].param(v) for name, v in internal.items())
        value = abs(internal["lr"] - 5e-4) + internal["act"]  # the best lies outside
        news.append(TrialNews(number, "COMPLETE", params, (value,), cell=0))
    after.feed(news)
    for ticket in range(24, 40):
        values = after.ask({"a": 64, "kind": "adam"}, ticket=ticket, retry=0).values
        assert 1e-3 <= values["lr"] <= 1e-2
        assert values["act"] in ("gelu", "elu", "tanh")
        assert 2 <= values["n"] <= 5
    assert after.summary([{"a": 32, "kind": "sgd"}])[0] is not None


def test_a_parameter_that_is_no_longer_searched_has_the_value_of_params_in_every_new_trial() -> (
    None
):
    made = extended(study(), search=(ACT,), params={**PARAMS, "lr": 0.05})
    lr = next(item for item in made.spec.search if item.path == "lr")
    assert (lr.low, lr.high) == (0.05, 0.05)
    assert made.spec.declares("lr")
    assert Search(made.spec).ask({"a": 32, "kind": "sgd"}, ticket=0, retry=0).values["lr"] == 0.05
    outside = extended(study(), search=(LR,), params={**PARAMS, "act": "silu"})
    asked = Search(outside.spec).ask({"a": 32, "kind": "sgd"}, ticket=0, retry=0)
    assert asked.values["act"] == "silu"
    assert whole(outside, "act").choices == ("relu", "gelu", "silu")


def test_trials_so_far_have_the_default_of_what_is_new() -> None:
    made = extended(study(), search=(LR, ACT, Searched("wd", "float", 0.0, 0.1)))
    assert [(p.name, p.internal, value) for p, value in made.added] == [("wd", 0.0, 0.0)]
    axis = extended(study(), grid=(A, KIND, Axis("n", (1, 3))))
    assert [(p.name, p.internal, value) for p, value in axis.added] == [("n", 3.0, 3)]


def test_a_default_that_every_trial_has_a_value_instead_of_may_differ() -> None:
    made = extended(study(), params={**PARAMS, "lr": 0.02, "a": 64})
    assert made.changes == ("params a: 32 -> 64", "params lr: 0.01 -> 0.02")
    conditional = study(search=(replace(LR, when={"kind": ("sgd",)}), ACT))
    with pytest.raises(ConfigError, match=r"params lr \(0.01 there, 0.02 here\)"):
        extended(conditional, search=conditional.search, params={**PARAMS, "lr": 0.02})


def test_an_axis_that_is_no_longer_one_keeps_the_cells_of_its_value() -> None:
    made = extended(study(), grid=(A,), params={**PARAMS, "kind": "adam"})
    assert [axis.values for axis in made.spec.grid] == [(32, 64), ("adam",)]
    assert made.spec.n_cells == 2


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"directions": ("maximize",)}, r"study.direction .*incomparable"),
        ({"metrics": ("acc",)}, r"study.metric .*incomparable"),
        ({"objective": {"_target_": "other"}}, r"objective _target_ .*incomparable"),
        ({"params": {**PARAMS, "n": 4}}, r"params n \(3 there, 4 here\): .*as an axis of the grid"),
        ({"search": (replace(LR, low=0.0, log=False), ACT)}, None),
        ({"search": (replace(LR, kind="int", low=1, high=4), ACT)}, "a float cannot become an int"),
        ({"search": (replace(LR, log=False, step=0.01), ACT)}, "another step"),
        ({"search": (LR, ACT, Searched("x", "float", 0, 1))}, "params has no default for it"),
        ({"search": (LR, ACT, Searched("n", "int", 4, 9))}, "have 3, .* lies outside"),
        ({"search": (LR, ACT, Searched("wd", "float", 1e-6, 1, log=True))}, "have 0.0, .* outside"),
        ({"grid": (A, KIND, Axis("n", (1, 2)))}, "have 3, which must be one of its values"),
        ({"grid": (replace(A, values=(32, 64, "big")), KIND)}, "words cannot be added"),
        ({"grid": (A, KIND, Axis("lr", (0.01, 0.1))), "search": (ACT,)}, "does not move between"),
        ({"search": (replace(LR, when={"kind": ("sgd",)}), ACT)}, "another condition on kind"),
        ({"search": (LR,), "params": {k: v for k, v in PARAMS.items() if k != "act"}}, "no value"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_says_why(changed: dict[str, Any], why: str | None) -> None:
    if why is None:
        extended(study(), **changed)
        return
    with pytest.raises(ConfigError, match=why):
        extended(study(), **changed)


def test_a_log_scale_needs_all_values_so_far_to_be_positive() -> None:
    linear = study(search=(Searched("lr", "float", 0.0, 0.1), ACT))
    with pytest.raises(ConfigError, match="a log scale needs positive values"):
        extended(linear, search=(LR, ACT))
    positive = study(search=(Searched("lr", "float", 0.001, 0.1), ACT))
    assert whole(extended(positive, search=(LR, ACT)), "lr").log


def test_a_condition_may_speak_of_new_values() -> None:
    old = study(search=(replace(LR, when={"kind": ("sgd",)}), ACT))
    new = replace(LR, when={"kind": ("sgd", "lion")})
    made = extended(old, grid=(A, replace(KIND, values=("sgd", "adam", "lion"))), search=(new, ACT))
    lr = next(item for item in made.spec.search if item.path == "lr")
    assert lr.exists_in({"kind": "lion"})
    assert not lr.exists_in({"kind": "adam"})


def test_options_of_config_groups_keep_their_contents() -> None:
    axis = Axis("model", ("mlp", "cnn"), ({"units": 64}, {"width": 8}), "model")
    params = {**PARAMS, "model": {"units": 64}}
    old = study(grid=(axis,), params=params)
    more = Axis("model", ("vit", "cnn"), ({"depth": 6}, {"width": 8}), "model")
    made = extended(old, grid=(more,), params=params)
    (now,) = made.spec.grid
    assert [now.content(value) for value in ("mlp", "cnn", "vit")] == [
        {"units": 64},
        {"width": 8},
        {"depth": 6},
    ]
    other = Axis("model", ("mlp", "cnn"), ({"units": 64}, {"width": 16}), "model")
    with pytest.raises(ConfigError, match="cnn stands for something else"):
        extended(old, grid=(other,), params=params)


def test_a_trial_is_replayed_as_its_revision_had_it() -> None:
    old = stored(study())
    made = extended(old, search=(replace(LR, high=1.0), ACT, Searched("wd", "float", 0.0, 0.1)))
    told = Search(old).ask({"a": 32, "kind": "sgd"}, ticket=0, retry=0)
    now = parameters(made.spec)
    rewritten = tuple(now[p.name].param(p.internal) for p in told.params) + tuple(
        p for p, _ in made.added
    )
    trial = TrialNews(0, "COMPLETE", rewritten, (1.0,), cell=0)
    assert as_it_was(trial, old, made.spec).params == told.params


def test_what_a_probe_found_holds_within_what_is_searched_now() -> None:
    made = extended(study(), search=(replace(LR, low=1e-3, high=1e-2), ACT))
    search = Search(made.spec)

    def drawn(low: float, high: float) -> list[float]:
        return [
            search.ask(
                {"a": 32, "kind": "sgd"}, ticket=ticket, retry=0, bounds={"lr": (low, high)}
            ).values["lr"]
            for ticket in range(12)
        ]

    assert all(1e-3 <= lr <= 1e-2 for lr in drawn(1e-4, 1e-1)), "wider than the range"
    inside = [2e-3 <= lr <= 3e-3 for lr in drawn(2e-3, 3e-3)]
    assert inside.count(True) >= 9, "every fourth ticket of a cell is searched in the whole range"
    assert all(1e-3 <= lr <= 1e-2 for lr in drawn(2e-2, 1e-1)), "measured before it was narrowed"
