"""Stages: what one inherits from the best of the one before, and what a declaration may say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import config
from orchestrator.cli import main, stage_words
from orchestrator.config.stages import read, written
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.search import CellEstimate
from orchestrator.stages import BEST, Chain, Inherited, Inherits, Stage, inherit, narrowed
from orchestrator.store import CellRow
from tests.support.commands import CONFIG


def spec(**changes: Any) -> StudySpec:
    fields: dict[str, Any] = {
        "name": "s",
        "directions": ("maximize",),
        "metrics": ("value",),
        "objective": {"_target_": "f"},
        "params": {},
        "grid": (),
        "search": (),
        "budget": Budget(4),
    }
    return StudySpec(**{**fields, **changes})


# ------------------------------------------------------------------------------------------ narrow


@pytest.mark.parametrize(
    ("old", "best", "share", "ends"),
    [
        (Searched("x", "float", 0.0, 10.0), 5.0, 0.3, (3.5, 6.5)),
        (Searched("x", "float", 0.0, 10.0), 1.0, 0.3, (0.0, 3.0)),
        (Searched("x", "float", 0.0, 10.0), 10.0, 0.3, (7.0, 10.0)),
        (Searched("x", "float", 1e-4, 1.0, log=True), 1e-2, 0.5, (1e-3, 1e-1)),
        (Searched("x", "float", 1e-4, 1.0, log=True), 1e-4, 0.5, (1e-4, 1e-2)),
        (Searched("x", "float", 0.0, 1.0, step=0.1), 0.5, 0.25, (0.3, 0.7)),
        (Searched("x", "float", 0.0, 1.0, step=0.1), 0.5, 0.2, (0.4, 0.6)),
        (Searched("x", "int", 1, 9), 5, 0.3, (3, 7)),
        (Searched("x", "int", 1, 9), 5, 0.01, (4, 6)),
        (Searched("x", "int", 0, 64, step=8), 32, 0.3, (16, 48)),
        (Searched("x", "int", 1, 256, log=True), 16, 0.25, (8, 32)),
        (Searched("x", "int", 3, 3), 3, 0.3, (3, 3)),
        (Searched("x", "float", 0.0, 10.0), 5.0, 1.0, (0.0, 10.0)),
    ],
)
def test_a_range_is_narrowed_on_its_own_scale_and_stays_within_the_old_one(
    old: Searched, best: float, share: float, ends: tuple[float, float]
) -> None:
    made = narrowed(old, best, share)
    assert (made.low, made.high) == pytest.approx(ends)
    assert replace(made, low=old.low, high=old.high) == old
    assert all(type(a) is type(b) for a, b in ((made.low, old.low), (made.high, old.high)))


@given(
    low=st.floats(1e-6, 1e3),
    ratio=st.floats(1.001, 1e6),
    where=st.floats(0, 1),
    share=st.floats(0.001, 1),
    log=st.booleans(),
)
def test_a_narrowed_range_holds_the_best_value_and_has_the_width_asked_for(
    low: float, ratio: float, where: float, share: float, log: bool
) -> None:
    old = Searched("x", "float", low, low * ratio, log=log)
    assert old.high is not None
    best = min(low * ratio**where if log else low + where * (old.high - low), old.high)
    made = narrowed(old, best, share)
    assert made.low is not None
    assert made.high is not None
    assert low <= made.low <= best <= made.high <= old.high
    if not log:
        assert made.high - made.low == pytest.approx(share * (old.high - low), rel=1e-6)


def test_a_choice_has_no_width() -> None:
    with pytest.raises(ConfigError, match="no width to narrow"):
        narrowed(Searched("x", "categorical", choices=("a", "b")), "a", 0.3)


# ------------------------------------------------------------------------------------------ freeze

GROUP = Axis("schedule", ("cosine", "step"), ({"name": "cosine"}, {"name": "step", "n": 3}), "s")
PROGRAMS = Axis("arch", ("resnet", "vit"), (), "arch")
BEFORE = spec(
    params={"data": {"size": 8}, "lr": 0.1, "wd": 0.0},
    grid=(Axis("data.size", (8, 16)), GROUP, PROGRAMS),
    search=(Searched("lr", "float", 1e-4, 1.0, log=True), Searched("wd", "float", 0.0, 1.0)),
)
TRIAL = {"data.size": 16, "schedule": "step", "arch": "vit", "lr": 0.01, "wd": 0.5, "found": 3}


def test_frozen_values_become_defaults_and_options_what_they_stand_for() -> None:
    stage = Stage(
        "fine",
        spec(params=BEFORE.params, search=(Searched("lr", "float", 1e-4, 1.0, log=True),)),
        Inherits(("data.size", "schedule", "arch"), {"lr": 0.5}),
    )
    inherited = inherit(stage, BEFORE, Inherited(), TRIAL, 7)
    made = inherited.of(stage)
    assert made.params == {
        "data": {"size": 16},
        "lr": 0.1,
        "wd": 0.0,
        "schedule": {"name": "step", "n": 3},
    }
    assert made.grid == (Axis("arch", ("vit",), (), "arch"),), "only an axis can hold it"
    (lr,) = made.search
    assert (lr.low, lr.high) == pytest.approx((1e-3, 0.1))
    assert inherited.frozen == {"data.size": 16, "schedule": "step", "arch": "vit"}
    assert (inherited.study, inherited.trial) == ("s", 7)
    again = Inherited.from_json(json.loads(json.dumps(inherited.to_json())))
    assert again == replace(inherited, options=again.options)
    assert again.of(stage).to_json() == made.to_json()
    assert BEFORE.params == {"data": {"size": 8}, "lr": 0.1, "wd": 0.0}
    assert any("schedule=step" in line for line in inherited.lines(BEFORE))


def test_freeze_best_takes_every_parameter_that_the_stage_does_not_declare() -> None:
    stage = Stage("fine", spec(search=(Searched("wd", "float", 0.0, 1.0),)), Inherits(BEST))
    inherited = inherit(stage, BEFORE, Inherited(), TRIAL)
    assert inherited.frozen == {key: value for key, value in TRIAL.items() if key != "wd"}


def test_what_is_frozen_stays_frozen_until_a_stage_declares_it_or_begins_anew() -> None:
    kept = Inherited(params={"a": 1, "b": {"c": 2}, "d": 3})
    stage = Stage("next", spec(grid=(Axis("b.c", (1, 2)),)), own=("d",))
    assert inherit(stage, BEFORE, kept, TRIAL).params == {"a": 1}
    anew = replace(stage, inherits=Inherits(anew=True))
    assert inherit(anew, BEFORE, kept, TRIAL, 3) == Inherited(study="s", trial=3)


def test_a_parameter_that_the_best_trial_does_not_have_is_not_searched() -> None:
    searched = Searched("lr", "float", 1e-4, 1.0, log=True)
    stage = Stage("fine", spec(search=(searched,)), Inherits((), {"lr": 0.5}))
    inherited = inherit(stage, BEFORE, Inherited(), {"wd": 0.1}, 2)
    assert inherited.gone == ("lr",)
    assert inherited.of(stage).search == ()
    assert inherited.lines() == ["not searched, as trial 2 of s has no lr"]


def test_a_value_is_laid_over_what_an_interpolation_refers_to() -> None:
    stage = Stage("fine", spec(params={"presets": {"lr": 1, "wd": 2}, "optim": "${presets}"}))
    made = Inherited(params={"optim.lr": 3}).of(stage)
    assert made.params["optim"] == {"lr": 3, "wd": 2}


# ------------------------------------------------------------------------------------- declarations


def chain(*words: str) -> Chain:
    composed = config.compose("launch", ["experiment=chain", *words], config_dir=str(CONFIG))
    made = config.chain(composed)
    assert made is not None
    return made


def test_the_stages_of_an_experiment() -> None:
    made = chain()
    assert (made.name, made.trials, made.most) == ("chain", 11, 12)
    assert [stage.spec.name for stage in made.stages] == [
        "chain.coarse",
        "chain.fine",
        "chain.last",
    ]
    coarse, fine, last = made.stages
    assert coarse.inherits == Inherits()
    assert fine.inherits == Inherits(("a",), {"x": 0.5})
    assert [s.path for s in fine.spec.search] == ["x"], "with the range of the stage before"
    assert last.inherits == Inherits(BEST)
    assert len({stage.spec.seed for stage in made.stages}) == 3
    assert "stages" not in coarse.spec.config
    assert config.chain(config.compose("launch", ["experiment=digits"])) is None


def test_words_change_one_stage_or_all_of_them() -> None:
    made = chain(
        "stages.last.budget.trials=4",
        "stages.coarse.grid.a=0,1,2",
        "stages.fine.sampler=gp",
        "stages.fine.params.y=5",
        "stages.fine.stop_when.patience=3",
        "allocation=adaptive",
        "budget.trials=14",
    )
    coarse, fine, last = (stage.spec for stage in made.stages)
    assert (coarse.grid[0].values, last.budget.trials) == ((0, 1, 2), 4)
    assert [s.sampler.name for s in (coarse, fine, last)] == ["tpe", "gp", "tpe"]
    assert {s.allocation for s in (coarse, fine, last)} == {"adaptive"}
    assert [s.params["y"] for s in (coarse, fine)] == [0, 5]
    assert [s.stop_when.patience for s in (coarse, fine)] == [None, 3]


def test_a_value_of_the_command_line_is_that_of_every_stage() -> None:
    made = chain("x=0.25", "kind=odd", "stages.fine.budget.trials=2")
    assert [stage.spec.params["x"] for stage in made.stages] == [0.25] * 3
    assert [[s.path for s in stage.spec.search] for stage in made.stages] == [[], [], ["y"]]
    assert made.stages[1].inherits == Inherits(("a",))


def test_what_a_stage_sets_stays_for_later_ones_unless_they_begin_anew() -> None:
    assert chain("stages.coarse.params.y=7").stages[1].spec.params["y"] == 7
    words = ("stages.fine.carry=nothing", "stages.fine.freeze=null", "stages.fine.narrow=null")
    assert chain("stages.coarse.params.y=7", *words).stages[1].spec.params["y"] == 0


def test_a_value_that_the_stage_before_set_is_kept_where_it_is_to_be_frozen() -> None:
    fine = ("stages.coarse.grid={}", "stages.coarse.params.a=1", "stages.coarse.budget.trials=2")
    stage = chain(*fine).stages[1]
    assert (stage.inherits.freeze, stage.spec.params["a"]) == ((), 1)


def test_what_the_top_level_says_of_a_parameter_is_for_the_stages_that_have_it() -> None:
    probe = "{_target_: orchestrator.training.probes.lr_range, build: my.build, parameter: x}"
    made = chain(f"probes.lr={probe}", "infeasible.monotone.a=memory")
    assert [list(stage.spec.probes) for stage in made.stages] == [["lr"], ["lr"], []]
    assert [list(s.spec.infeasible.monotone) for s in made.stages] == [["a"], [], []]


def test_the_list_is_replaced_from_the_command_line() -> None:
    made = chain("stages=[{name: one, budget: {trials: 2}}]")
    assert [(stage.name, stage.spec.budget.trials) for stage in made.stages] == [("one", 2)]
    words = ["experiment=chain", "stages=[]"]
    alone = config.compose("launch", words, config_dir=str(CONFIG))
    assert config.chain(alone) is None
    assert "stages" not in config.study_spec(alone).config


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (3, "stages=3: must be a list"),
        ([3], "stages[0]=3: must be a mapping"),
        ([{"budget": {"trials": 1}}], "stages[0].name must be given"),
        ([{"name": "a.b"}], "stages[0].name='a.b': must consist of"),
        ([{"name": "a"}, {"name": "a"}], "stages[1].name=a: two stages have this name"),
        ([{"name": "a", "freeze": "best"}], "stages.a: freeze: there is no stage before the first"),
        ([{"name": "a", "serch": {}}], "stages.a: a stage has no serch (did you mean 'search'?)"),
        ([{"name": "a", "study": {}}], "stages.a: study is the same for all stages"),
        ([{"name": "a"}, {"name": "b", "freeze": 3}], "stages.b: freeze=3: must be the word best"),
        ([{"name": "a"}, {"name": "b", "narrow": {"x": 1.5}}], "narrow.x=1.5: must be a share of"),
        ([{"name": "a"}, {"name": "b", "carry": "all"}], "carry=all: must be the word nothing"),
        ([{"name": "a"}, {"name": "b", "carry": "nothing", "freeze": "best"}], "inherits nothing"),
    ],
)
def test_what_a_list_of_stages_may_not_say(node: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        read(written(node, []))


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("stages.fin.budget.trials=3", "there is no stage fin (did you mean 'fine'?)"),
        ("stages.fine.freeze=[b]", "stages.fine: freeze: b is no parameter of the stage before"),
        ("stages.fine.grid.a=[0,1]", "stages.fine: freeze: a is declared by this stage too"),
        ("stages.fine.narrow.a=0.5", "a is an axis of the stage before, which has no width"),
        ("stages.fine.narrow.z=0.5", "the stage before does not search z"),
        ("stages.fine.search.x='interval(0,1)'", "this stage declares x in grid or search too"),
        ("stages.coarse.search.x=[a,b]", "narrow.x: x is a choice (a, b), which has no width"),
        ("stages.last.budget.trails=3", "stages.last: unknown setting budget.trails (did you mean"),
        ("stages.last.budget.trials=9", "budget.trials=12: the stages have 4 (coarse) + 4 (fine)"),
        ("study.metric=[a,b]", "with several objectives there is no one best trial"),
        ("warm_start=[other]", "warm_start: a stage begins with what the one before it found"),
        ("study.name=" + "n" * 96, "the study of stage coarse is called"),
        ("stages.last.sampler=gpp", "stages.last: sampler=gpp: there is no such option"),
    ],
)
def test_a_mistake_is_told_with_the_stage_the_value_and_the_rule(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chain(word)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_stages_are_confirmed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", f"--config-dir={CONFIG}", "experiment=tiny", "stages.confirm=true"]) == 2
    assert "stages.confirm=true: this study has no stages" in capsys.readouterr().err


def test_the_digits_in_stages() -> None:
    made = config.chain(config.compose("launch", ["experiment=digits_stages"]))
    assert made is not None
    assert made.trials == made.most == 40


def test_a_cell_that_is_likelier_the_best_than_the_frozen_one_is_told() -> None:
    stage = Stage("two", spec(), Inherits(("bs", "x")))
    zeros = (None, 0, 0, 0, 0, 0, None, None, 0)
    cells = [CellRow(k, {"bs": bs}, "OPEN", *zeros) for k, bs in enumerate((16, 32))]
    estimates = [CellEstimate(0.5, 0.4, 0.6, 0.17), CellEstimate(0.4, 0.3, 0.5, 0.83)]
    frozen = Inherited({"bs": 16}, study="s.one", trial=0)
    assert stage_words.likelier(stage, frozen, cells, estimates) == [
        "the best trial has bs=16, but the best cell is rather bs=32 (P(best) 83 %); to take that "
        "instead: stages.two.params.bs=32 stages.two.freeze=[x]"
    ]
    same = Inherited({"bs": 32}, study="s.one", trial=1)
    assert stage_words.likelier(stage, same, cells, estimates) == []
    assert stage_words.likelier(stage, frozen, cells, [None, None]) == []
