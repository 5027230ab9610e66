"""What one host asks of the others, and what it lets a database make it run."""

from __future__ import annotations

import pytest

from orchestrator.store import Store
from tests.support.commands import CONFIG, Commands, complaints
from tests.support.invariants import query
from tests.support.studies import spec

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny", "worker.count=1")
QUICK = {"_target_": "tests.support.training.quick"}


def somebody_elsewhere(commands: Commands, store: Store, place: str) -> None:
    """A worker of another host, that keeps its checkpoints at `place`."""
    lease = store.fleet.register(600, checkpoints=place)
    query(
        str(commands.url),
        "UPDATE orchestrator.worker SET host = 'far-away' WHERE worker_id = %s",
        lease.worker_id,
    )


def test_hosts_that_keep_checkpoints_in_different_places_are_refused_at_launch(
    commands: Commands, store: Store
) -> None:
    somebody_elsewhere(commands, store, "another place")
    refused = commands.run("launch", *TINY)
    assert (refused.returncode, len(complaints(refused))) == (2, 1)
    assert "paths.checkpoints: the workers on far-away, " in refused.stderr
    assert "keep checkpoints in different places" in refused.stderr
    assert store.reads.studies() == [], "before anything is written"
    assert "finished: budget spent" in commands.check("launch", *TINY, "runner.resume=false")


def test_hosts_that_share_a_place_need_no_more(commands: Commands, store: Store) -> None:
    shared = commands.directory / "shared"
    shared.mkdir()
    (shared / ".orchestrator-place").write_text("the same place")
    somebody_elsewhere(commands, store, "the same place")
    assert "finished: budget spent" in commands.check(
        "launch", *TINY, f"paths.checkpoints={shared}"
    )
    assert list(shared.glob("tiny-*/trial-0/attempt-1-*")), "that is where they are kept"


def test_a_target_that_the_host_does_not_allow_is_not_run(commands: Commands, store: Store) -> None:
    refused = commands.run("launch", *TINY, "worker.allow_targets=[my_project.*]")
    assert (refused.returncode, len(complaints(refused))) == (2, 1)
    assert "worker.allow_targets" in refused.stderr
    assert "tests.support.training.quick" in refused.stderr
    assert store.reads.studies() == []
    study = store.studies.launch(spec(cells=1, objective=QUICK)).study_id
    left = commands.run(
        "worker",
        "worker.allow_targets=my_project.*",
        "worker.idle_timeout_s=0.5",
        "worker.poll_s=0.1",
    )
    assert "not claiming from study study" in left.stderr
    assert store.reads.trials(study) == []
    commands.check(
        "worker", "worker.allow_targets=[tests.support.training.*]", "worker.max_trials=1"
    )
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE"]
