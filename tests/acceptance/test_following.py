"""What is said of a study that stands still, and of one that nobody looks at: by `launch`,
`status`, `doctor` and workers.
"""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest

from orchestrator.settings import stored_sampler
from orchestrator.store import Store
from tests.support.commands import CONFIG, Commands, line_with
from tests.support.studies import spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny")
QUICK = {"_target_": "tests.support.training.quick"}
SOON = ("worker.poll_s=0.1", "worker.heartbeat_s=0.5")


def study_of(commands: Commands, name: str) -> dict[str, Any]:
    listed = json.loads(commands.check("status", "--json", f"study.name={name}"))["studies"]
    return next(study for study in listed if study["name"] == name)


def test_a_launch_says_within_seconds_that_no_worker_can_serve_its_study_and_why(
    commands: Commands, store: Store
) -> None:
    only_following = ("worker.count=0", "x=0.5", "a=1", "budget.trials=1", "budget.per_cell=1")
    with commands.started("launch", *TINY, *only_following) as launch:
        assert "no worker is running; start one with: orchestrator worker" in line_with(
            launch, "no worker serves study tiny"
        )
        with commands.started("worker", "worker.allow_targets=[nothing]", *SOON) as worker:
            said = line_with(launch, "no worker can serve study tiny")
            assert (
                "1 worker: objective._target_: 'tests.support.training.quick' may not run on "
                "this host"
            ) in said
            assert study_of(commands, "tiny")["unserved"] in said
            assert "no worker can serve study tiny: 1 worker" in commands.check("status")
            doctor = commands.run("doctor")
            assert (
                doctor.returncode,
                "study tiny: not served: none of the workers" in doctor.stdout,
            ) == (1, True)
            with commands.started("worker", "worker.studies=[other]", *SOON) as other:
                wait_until(lambda: len(store.reads.workers()) == 2)
                worker.send_signal(signal.SIGTERM)
                assert "1 worker serves only other studies" in line_with(
                    launch, "no worker serves study tiny"
                )
                assert commands.run("doctor").returncode == 0
                other.send_signal(signal.SIGTERM)
                assert other.wait(timeout=60) == 0
            assert worker.wait(timeout=60) == 0
        with commands.started("worker", *SOON):
            assert launch.wait(timeout=60) == 0
    assert study_of(commands, "tiny")["unserved"] is None


def test_a_launch_waits_for_its_own_workers_before_it_says_that_nobody_serves_its_study(
    commands: Commands, store: Store
) -> None:
    with commands.started(
        "worker", "worker.studies=[other]", "worker.slots_per_device=2", *SOON
    ) as other:
        wait_until(lambda: len(store.reads.workers()) == 1, 60)
        words = (
            "x=0.5",
            "a=1",
            "budget.trials=1",
            "budget.per_cell=1",
            "worker.slots_per_device=2",
        )
        done = commands.run("launch", *TINY, *words, "worker.count=1")
        assert (done.returncode, "no worker" in done.stdout + done.stderr) == (0, False), (
            done.stdout + done.stderr
        )
        other.send_signal(signal.SIGTERM)
        assert other.wait(timeout=60) == 0


def test_a_study_that_a_worker_cannot_make_sense_of_keeps_it_from_no_other(
    commands: Commands, store: Store
) -> None:
    strange = store.studies.launch(
        spec(
            "strange",
            cells=1,
            objective=QUICK,
            sampler=stored_sampler({"name": "of a later version"}),
            priority=9,
        )
    )
    store.studies.launch(spec("plain", cells=1, objective=QUICK))
    done = commands.run("worker", "worker.idle_timeout_s=0.5", *SOON)
    assert done.returncode == 0, done.stderr
    assert "not claiming from study strange: " in done.stderr
    assert store.reads.find("plain").state == "FINISHED"
    assert store.reads.trials(strange.study_id) == []


def test_leaving_a_study_says_what_stays_and_workers_and_status_say_that_nobody_follows_it(
    commands: Commands, store: Store
) -> None:
    stop = "orchestrator stop study.name=tiny"
    with commands.started("launch", *TINY, "worker.count=0") as launch:
        wait_until(lambda: any(row.followed for row in store.reads.studies()), 60)
        assert study_of(commands, "tiny")["followed"]
        line_with(launch, "worker.count=0")
        os.kill(launch.pid, signal.SIGINT)
        assert launch.wait(timeout=60) == 130
        said = launch.communicate()[0]
    assert "study tiny stays active with 6 trials left" in said
    assert f"to continue: the same command; to end it: {stop}" in said
    status = commands.check("status")
    assert re.search(r"> +tiny +0/6 +0 +active, launched \d+ s ago\n", status), status
    assert re.search(
        rf"tiny: no launch follows it; launched \d+ s ago; '{stop}' ends it\n", status
    ), status
    done = commands.run("worker", "worker.max_trials=1")
    assert "serves study tiny, launched " in done.stderr
    assert f"no launch follows it, and '{stop}' ends it" in done.stderr
    commands.check("stop", "study.name=tiny")
    assert "no launch follows it" not in commands.check("status")


def test_the_workers_of_a_launch_say_nothing_of_a_study_that_is_followed(
    commands: Commands,
) -> None:
    commands.check(
        "launch", *TINY, "worker.count=1", "x=0.5", "a=1", "budget.trials=1", "budget.per_cell=1"
    )
    log = (commands.directory / "output" / "worker-1.log").read_text()
    assert "serves study tiny, launched " in log
    assert "no launch follows it" not in log
