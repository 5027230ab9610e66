"""Many commands at once on a database that has no tables yet, and two launches that disagree."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import CONFIG, Commands
from tests.support.fleet import Fleet

EXPERIMENT = (
    f"--config-dir={CONFIG}",
    "experiment=tiny",
    "objective._target_=tests.support.chaos_objective.train",
)
FAST = ("+objective.seconds=0.1", "sampler=random", "worker.count=0", "budget.per_cell=1")


@pytest.mark.chaos("long")
def test_launches_and_workers_at_once_on_an_empty_database_all_run(
    empty_database_url: str, tmp_path: Path, long: bool, figures: Callable[..., None]
) -> None:
    count = 10 if long else 4
    commands = Commands(empty_database_url, tmp_path)
    cells = 3 * count
    words = (*EXPERIMENT, *FAST, f"a={','.join(map(str, range(cells)))}", f"budget.trials={cells}")
    with Fleet(commands) as fleet:
        launches = []
        for k in range(count):
            launches.append(
                fleet.start(*words, f"hydra.run.dir={tmp_path}/output-{k}", command="launch")
            )
            fleet.start(apart=True)
        codes = [launch.ended(120) for launch in launches]
        assert codes == [0] * count, [launch.text() for launch in launches]
        fleet.dismiss()
    created = sum("study tiny: " in launch.text() for launch in launches)
    assert created == 1, "one creates the study, the others join it"
    invariants.check(commands, "tiny", cells=cells)
    figures(commands=2 * count, exit_codes=sorted(set(codes)))


@pytest.mark.chaos("long")
def test_of_two_launches_with_different_spaces_one_wins_and_the_other_says_what_differs(
    commands: Commands, store: Store, dice: random.Random, long: bool, tmp_path: Path
) -> None:
    spaces = (("a=0,1",), ("a=0,1,2",), ("x=interval(0,2)",), ("study.direction=minimize",))
    with Fleet(commands) as fleet:
        fleet.start()
        for k in range(20 if long else 2):
            pair = dice.sample(spaces, 2)
            name = f"study.name=round-{k}"
            rivals = [
                fleet.start(
                    *EXPERIMENT,
                    *FAST,
                    *space,
                    name,
                    "budget.trials=3",
                    f"hydra.run.dir={tmp_path}/{k}-{i}",
                    command="launch",
                )
                for i, space in enumerate(pair)
            ]
            codes = sorted(rival.ended() for rival in rivals)
            assert codes == [0, 2], [rival.text() for rival in rivals]
            loser = next(rival for rival in rivals if rival.process.exitcode == 2)
            assert (
                f"study.name=round-{k}: a study of this name exists with a different"
                in loser.text()
            )
            loser.expected_dead = True
            assert store.reads.find(f"round-{k}").state == "FINISHED"
        fleet.dismiss()
