"""Studies of an older version go on under this one: options stored by their content, steps that
were binary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched, StudySpec
from orchestrator.search import Search
from orchestrator.store import Store, WorkerLease
from orchestrator.worker.studies import Served
from tests.support.studies import begun, end, spec, take

MLP, CNN = {"kind": "mlp", "width": 4}, {"kind": "cnn", "root": "/data"}
# as the version before options had names made it
HASH = "c02e7e59bb2976792617bde7725b65b9a1c2079e590ee483d4bd0a094d9ead27"


def old_form() -> StudySpec:
    depth = Searched("depth", "int", 1, 3, when={"arch": (CNN,)})
    changes: dict[str, Any] = {
        "params": {"a": 0, "x": 0.5, "arch": MLP},
        "grid": (Axis("arch", (MLP, CNN)),),
    }
    return spec("old", trials=4, search=(depth, Searched("x", "float", 0.0, 1.0)), **changes)


def new_form(cnn: Mapping[str, object], trials: int = 6) -> StudySpec:
    old = old_form()
    depth = replace(old.search[0], when={"arch": ("cnn",)})
    axis = Axis("arch", ("mlp", "cnn"), (MLP, cnn), "arch")
    return replace(
        old, grid=(axis,), search=(depth, old.search[1]), budget=replace(old.budget, trials=trials)
    )


def test_what_an_older_version_launched_has_the_hash_it_had() -> None:
    assert old_form().spec_hash() == HASH
    assert StudySpec.from_json(old_form().to_json()).spec_hash() == HASH
    assert new_form(CNN).spec_hash() != HASH
    assert StudySpec.from_json(new_form(CNN).to_json()) == new_form(CNN)


@pytest.mark.parametrize("root", ["/data", "${oc.env:DATA_ROOT}"])
def test_a_study_whose_options_have_no_names_goes_on_as_it_is(
    store: Store, lease: WorkerLease, root: str
) -> None:
    study = store.studies.launch(old_form()).study_id
    first = take(store, lease, study)
    assert first is not None
    search = Search(store.reads.spec(study))
    end(store, begun(store, first, lease, search.ask(first.cell_values, ticket=0, retry=0)))

    again = store.studies.launch(new_form({"kind": "cnn", "root": root}))
    assert (again.created, again.added, again.changes) == (False, 2, ("budget.trials: 4 -> 6",))
    stored = store.reads.spec(study)
    assert stored.spec_hash() == HASH
    assert stored.search[0].when == {"arch": (CNN,)}
    second = take(store, lease, study)
    assert second is not None
    assert second.cell_values == {"arch": CNN}
    suggested = Search(stored).ask(second.cell_values, ticket=1, retry=0)
    assert set(suggested.values) == {"arch", "x", "depth"}
    assert len(store.reads.progress(store.reads.find("old"), maximize=True).cells) == 2


@pytest.mark.parametrize("root", ["/elsewhere", "${root}", 1])
def test_another_content_is_another_study(store: Store, root: object) -> None:
    store.studies.launch(old_form())
    with pytest.raises(ConfigError, match=r"a different grid arch .*\"mlp\":"):
        store.studies.launch(new_form({"kind": "cnn", "root": root}))


def test_the_way_a_group_is_typed_is_no_part_of_a_studys_identity(store: Store) -> None:
    axis = Axis("arch", ("mlp", "cnn"), (MLP, CNN), "arch")
    study = spec("new", trials=4, params={"x": 0.5, "arch": MLP}, grid=(axis,))
    store.studies.launch(study)
    typed = replace(study, grid=(replace(axis, group="arch@params.arch"),))
    assert store.studies.launch(typed).changes == ()
    with pytest.raises(ConfigError, match="a different grid arch"):
        store.studies.launch(replace(study, grid=(replace(axis, contents=(MLP, MLP)),)))


def test_a_step_that_an_older_version_stored_in_binary_replays_as_the_same(
    store: Store,
    lease: WorkerLease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Searched("x", "float", 0.0, 1.0, step=0.1)
    study = store.studies.launch(spec("old", search=(steps,), grid=(), cells=1, trials=40)).study_id
    row, stored = store.reads.find("old"), store.reads.spec(study)
    served: Any = Served(row, stored, Search(stored), runner=None)  # type: ignore[arg-type]
    number = None
    while number is None:  # until one is drawn that binary has no exact form of, such as 0.3
        claim = take(store, lease, study)
        assert claim is not None
        made = served.suggest(claim, asks=1)
        binary = round(made.params[0].internal * 10) * 0.1
        exact = binary == made.params[0].internal
        older = replace(
            made, params=(replace(made.params[0], internal=binary),), values={"x": binary}
        )
        created = begun(store, claim, lease, older)
        end(store, created)
        number = None if exact else created.number
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    assert main(["replay", "study.name=old", f"trial={number}", f"paths.data={tmp_path}"]) == 0
    assert "the same suggestion" in capsys.readouterr().out


def test_a_replay_shows_values_as_the_objective_got_them(
    store: Store,
    lease: WorkerLease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Searched("n", "int", 1, 64)
    kind = Searched("kind", "categorical", choices=("1", 1, None))
    made = spec("whole", search=(whole, kind), grid=(Axis("size", (64, 32)),), trials=2)
    study = store.studies.launch(made).study_id
    row, stored = store.reads.find("whole"), store.reads.spec(study)
    served: Any = Served(row, stored, Search(stored), runner=None)  # type: ignore[arg-type]
    claim = take(store, lease, study)
    assert claim is not None
    suggested = served.suggest(claim, asks=1)
    end(store, begun(store, claim, lease, suggested))
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    assert main(["replay", "study.name=whole", "trial=0", f"paths.data={tmp_path}"]) == 0
    said = capsys.readouterr().out
    values = suggested.values
    assert "  size = 64\n" in said
    assert f"  n = {values['n']}\n" in said
    assert f"  kind = {json.dumps(values['kind'])}\n" in said
