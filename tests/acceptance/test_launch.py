"""The main job as a user runs it: whole commands, real processes, a real database."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
import yaml

from orchestrator.cli import main
from orchestrator.errors import StoreUnavailableError
from orchestrator.store import Store, TrialRow
from orchestrator.store.reads import Reads
from tests.support.commands import CONFIG, Commands, descendants, kill
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny")


def test_a_study_runs_to_its_end_and_is_continued_by_the_same_command(commands: Commands) -> None:
    said = commands.check("launch", *TINY)
    assert "study tiny: 6 trials, 3 cells x 2 guaranteed, sampler tpe" in said
    assert "finished: budget spent" in said
    assert "best of every cell" in said
    assert "as a page: orchestrator report study.name=tiny" in said
    assert "browse it: orchestrator dashboard" in said
    study = optuna.load_study(study_name="tiny", storage=str(commands.url))
    assert Counter(t.params["a"] for t in study.trials) == {0: 2, 1: 2, 2: 2}
    assert all(t.state.name == "COMPLETE" and set(t.params) == {"a", "x"} for t in study.trials)
    again = commands.check("launch", *TINY, "dashboard.url=https://tuning.example.org")
    assert "browse it: https://tuning.example.org\n" in again
    assert "nothing to add: budget.trials=6 is spent" in again
    assert len(study.get_trials()) == 6
    more = commands.check("launch", *TINY, "budget.trials=8")
    assert "study tiny continues: 2 trials added" in more
    assert "changed budget.trials: 6 -> 8" in more
    assert len(study.get_trials()) == 8


def test_a_seed_and_one_worker_give_the_same_study_again(commands: Commands) -> None:
    words = ("budget.trials=16", "allocation=adaptive", "sampler=gp", "study.seed=7")
    found = []
    for name in ("once", "again"):
        commands.check(
            "launch", *TINY, *words, f"study.name={name}", "worker.count=1", "worker.prefetch=0"
        )
        study = optuna.load_study(study_name=name, storage=str(commands.url))
        found.append([(trial.number, trial.params, trial.values) for trial in study.trials])
    assert len(found[0]) == 16
    assert found[0] == found[1]


def test_the_last_trials_repeat_the_leaders_with_other_seeds(commands: Commands) -> None:
    words = ("objective._target_=tests.support.training.noisy", "budget.trials=30")
    plan = commands.check("launch", *TINY, *words, "budget.confirm=8", "--dry-run")
    assert "the last 8 confirm the leaders" in plan
    said = commands.check("launch", *TINY, *words, "budget.confirm=8", "worker.count=2")
    assert "30/30 trials" in said
    assert "noise of value from seed to seed: 0." in said
    study = optuna.load_study(study_name="tiny", storage=str(commands.url))
    repeats = {t.number: t.user_attrs.get("orchestrator:confirms") for t in study.trials}
    confirming = {number: of for number, of in repeats.items() if of is not None}
    assert 0 < len(confirming) <= 8
    assert min(confirming) >= 21, "one that was prepared early may come before others that end"
    for number, of in confirming.items():
        again, first = study.trials[number], study.trials[of]
        assert again.params == first.params
        assert again.values != first.values
        assert again.user_attrs["orchestrator:why"]["confirms"] == of
    report = json.loads(commands.check("best", "--json"))
    (best,) = report["best"]
    assert best["trial"] in report["leaders"][0]["trials"]
    assert report["noise"]["low"] < report["noise"]["std"] < report["noise"]["high"]
    assert report["best_observed"][0]["trial"] == study.best_trial.number
    assert f"best trial {best['trial']}:" in said
    observed = json.loads(commands.check("best", "--json", "observed=true"))
    assert observed["best"][0]["trial"] == study.best_trial.number
    cell = next(c for c in report["cells"] if c["values"] == {"a": best["params"]["a"]})
    assert cell["estimate"]["trial"] == best["trial"]
    assert f"trial {best['trial']} of tiny again" in commands.run("rerun").stderr
    assert "nothing wrong" in commands.check("doctor")


def test_the_commands_that_read_show_the_study(commands: Commands, tmp_path: Path) -> None:
    commands.check(
        "launch", *TINY, "x=0.25", "a=0,1", "budget.per_cell=1", "budget.trials=2", "worker.count=1"
    )
    status = commands.check("status")
    assert re.search(r"> +tiny +2/2 +0 +0.9375 +finished \(budget spent\), last activity ", status)
    report = json.loads(commands.check("status", "--json"))
    assert report["study"]["trials"] == {
        "total": 2,
        "spent": 2,
        "running": 0,
        "waiting": 0,
        "failed": 0,
    }
    assert report["workers"] == [], "launch's workers left in order"
    best = yaml.safe_load(commands.check("best", "study.name=tiny", f"out={tmp_path}/best.yaml"))
    assert (best["trial"], best["params"]) == (1, {"a": 1})
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {
        "a": 1,
        "x": 0.25,
        "kind": "plain",
    }
    as_json = json.loads(commands.check("best", "--json", "trial=0"))
    assert as_json["best"][0]["overrides"] == ["a=0"]
    assert commands.run("logs", "trial=0").returncode == 0
    missing = commands.run("logs", "trial=7")
    assert (missing.returncode, "no worker has run a trial with this number" in missing.stderr) == (
        2,
        True,
    )


def test_several_workers_cover_a_grid_exactly(commands: Commands, store: Store) -> None:
    cells = ",".join(map(str, range(24)))
    commands.check(
        "launch",
        *TINY,
        f"a={cells}",
        "sampler=random",
        "budget.trials=24",
        "budget.per_cell=1",
        "worker.count=4",
        timeout=180,
    )
    trials = optuna.load_study(study_name="tiny", storage=store.url).trials
    assert [t.number for t in trials] == list(range(24))
    assert Counter(t.params["a"] for t in trials) == dict.fromkeys(range(24), 1)


def test_kills_of_its_workers_lose_and_double_nothing(commands: Commands, store: Store) -> None:
    cells = ",".join(map(str, range(12)))
    # The last trials wait until all kills are done: the study does not end before.
    gate = commands.directory / "gate"
    slow = (
        "objective._target_=tests.support.chaos_objective.train",
        f"+objective.gate={gate}",
        "+objective.gated_from=6",
        "sampler=random",
    )
    dice = random.Random(1)
    with commands.started(
        "launch",
        *TINY,
        f"a={cells}",
        *slow,
        "budget.trials=12",
        "budget.per_cell=1",
        "worker.count=3",
    ) as launch:
        study = wait_until(
            lambda: next((r for r in store.reads.studies() if r.name == "tiny"), None), 60
        )
        killed: set[int] = set()
        while len(killed) < 5:
            busy = wait_until(lambda: _held_by(store, study.study_id, killed), 60)
            pid = dice.choice(busy)
            kill(pid)
            killed.add(pid)
        gate.touch()
        code = launch.wait(timeout=150)
        assert code == 0, launch.communicate()[0]
    trials = optuna.load_study(study_name="tiny", storage=store.url).trials
    assert Counter(t.params["a"] for t in trials if t.state.name == "COMPLETE") == dict.fromkeys(
        range(12), 1
    )
    assert all(t.state.is_finished() for t in trials)
    assert [t.number for t in trials] == list(range(len(trials)))


def _held_by(store: Store, study_id: int, but: set[int]) -> list[int]:
    holding = {t.worker_id for t in store.reads.trials(study_id, live_only=True)}
    return [
        w.pid
        for w in store.reads.workers()
        if w.worker_id in holding and w.pid not in but and psutil.pid_exists(w.pid)
    ]


def test_a_worker_in_another_terminal_joins_and_reads_what_to_run_from_the_database(
    commands: Commands, store: Store
) -> None:
    with (
        commands.started(
            "launch", *TINY, "budget.trials=9", "budget.per_cell=3", "worker.count=0"
        ) as launch,
        commands.started("worker", "worker.idle_timeout_s=30", "worker.max_trials=9") as worker,
    ):
        assert launch.wait(timeout=90) == 0
        assert worker.wait(timeout=30) == 0
    assert len(optuna.load_study(study_name="tiny", storage=store.url).trials) == 9


def test_a_terminated_worker_gives_its_trial_back_and_another_resumes_it(
    commands: Commands, store: Store
) -> None:
    patient = "objective._target_=tests.support.training.interruptible"
    with commands.started(
        "launch", *TINY, patient, "a=1", "budget.per_cell=1", "budget.trials=1", "worker.count=0"
    ):
        with commands.started("worker", "worker.drain_s=0") as worker:
            study = wait_until(lambda: next((r for r in store.reads.studies()), None), 60)
            wait_until(
                lambda: list(
                    commands.directory.glob("runs/tiny-*/trial-0/attempt-1-*/checkpoints/seen")
                ),
                60,
            )
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=30) == 0, worker.communicate()[0]
        assert store.reads.attempts(study.study_id, 0)[0].outcome == "interrupted"
        assert [w.worker_id for w in store.reads.workers()] == []
        commands.check("worker", "worker.max_trials=1", timeout=60)
    trial = optuna.load_study(study_name="tiny", storage=store.url).trials[0]
    assert (trial.value, trial.user_attrs["orchestrator:attempts"]) == (2.0, 2)


def test_ctrl_c_on_launch_ends_its_workers_after_their_trials_and_leaves_the_study(
    commands: Commands, store: Store
) -> None:
    slow = (
        "objective._target_=tests.support.training.slow",
        "+objective.seconds=3",
        "worker.count=1",
    )
    with commands.started("launch", *TINY, *slow) as launch:
        study = wait_until(lambda: next((r for r in store.reads.studies()), None), 60)
        wait_until(lambda: store.reads.trials(study.study_id, live_only=True), 60)
        os.kill(launch.pid, signal.SIGINT)
        assert launch.wait(timeout=60) == 130, launch.communicate()[0]
        assert descendants(launch.pid) == []
    assert [t.state for t in store.reads.trials(study.study_id)] == ["COMPLETE"]
    assert store.reads.find("tiny").active


def test_a_killed_launch_takes_its_workers_with_it(commands: Commands, store: Store) -> None:
    slow = ("objective._target_=tests.support.training.slow", "worker.count=2", "worker.drain_s=0")
    with commands.started("launch", *TINY, *slow) as launch:
        wait_until(lambda: len(store.reads.workers()) == 2, 60)
        pids = [w.pid for w in store.reads.workers()]
        wait_until(
            lambda: len(store.reads.trials(store.reads.find("tiny").study_id, live_only=True)) == 2,
            60,
        )
        family = [*pids, *(d for pid in pids for d in descendants(pid))]
        kill(launch.pid)
        wait_until(lambda: not any(_runs(pid) for pid in family), 30)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def test_failing_trials_say_why_and_close_their_cell(commands: Commands, store: Store) -> None:
    done = commands.run(
        "launch",
        *TINY,
        "objective._target_=tests.support.training.breaks",
        "budget.max_failures_per_cell=1",
    )
    assert done.returncode == 0
    assert "ValueError: a may not be 0" in done.stdout
    assert "SIGSEGV" in done.stdout
    assert "about to break" in done.stdout
    assert "closed: 2 trials failed in a row" in done.stdout
    cells = store.reads.progress(store.reads.find("tiny"), maximize=True).cells
    assert [(c.state, c.completed) for c in cells] == [("CLOSED", 0), ("CLOSED", 0), ("OPEN", 6)]
    log = commands.check("logs", "trial=0")
    assert "about to break" in log or "Segmentation fault" in log, "whichever cell came first"
    failed = next(
        t
        for t in store.reads.trials(store.reads.find("tiny").study_id)
        if t.failure and "ValueError" in t.failure
    )
    assert "output.log" in str(failed.failure)


def test_a_bug_pauses_the_study_is_told_once_and_mended_the_study_goes_on(
    commands: Commands, store: Store
) -> None:
    mended = commands.directory / "mended"
    breaks = (
        "objective._target_=tests.support.training.breaks_until_mended",
        f"+objective.file={mended}",
    )
    study = (
        *TINY,
        *breaks,
        "a=tag(grid, range(0, 14))",
        "budget.per_cell=1",
        "budget.trials=14",
        "sampler=random",
    )
    done = commands.run("launch", *study)
    failed = sum(t.state == "FAIL" for t in store.reads.trials(store.reads.find("tiny").study_id))
    assert (done.returncode, 8 <= failed <= 11) == (7, True), (done.stdout, failed)
    assert done.stdout.count("Traceback") == 1
    assert re.search(
        rf"\n{failed} trials failed the same way, first trial \d+: ValueError: not mended yet\n",
        done.stdout,
    ), done.stdout
    # What still ran when the study paused is counted too.
    assert (
        f"study tiny is paused by itself: the first {failed} trials failed alike, and none produced"
        in done.stderr
    )
    assert "orchestrator resume study.name=tiny" in done.stderr
    status = commands.check("status")
    assert status.count("Traceback") == 1
    assert f"{failed} trials failed the same way" in status
    assert "orchestrator resume study.name=tiny" in status
    mended.touch()
    said = commands.check("launch", *study)
    assert "Traceback" not in said
    assert "14/14 trials" in said
    assert "Traceback" not in commands.check("status"), "of an earlier launch"


def test_closed_cells_run_again_with_one_word_and_within_the_budget(
    commands: Commands, store: Store
) -> None:
    mended = commands.directory / "mended"
    breaks = (
        "objective._target_=tests.support.training.breaks_until_mended",
        f"+objective.file={mended}",
    )
    budget = (
        "budget.trials=4",
        "budget.max_failures_per_cell=1",
        "budget.max_failures_at_start=null",
    )
    study = (*TINY, *breaks, "a=0,1", *budget, "worker.count=1", "worker.prefetch=0")
    done = commands.run("launch", *study)
    assert (done.returncode, "every cell is closed" in done.stderr) == (7, True)
    again = commands.run("launch", *study)
    assert again.returncode == 7
    assert (
        "nothing to add: every cell is closed; once the cause of the failures is fixed,"
        " the same command with retry=failed" in again.stdout
    )
    assert "orchestrator retry study.name=tiny trial=failed" in again.stderr
    assert "Traceback" not in again.stdout + again.stderr, "no failure of an earlier launch"
    assert "not mended yet" not in again.stderr
    mended.touch()
    said = commands.check("launch", *study, "retry=failed")
    assert said.startswith("study tiny continues\nrun again as new trials: 1, 3\n")
    assert "4/4 trials" in said
    states = [t.state for t in store.reads.trials(store.reads.find("tiny").study_id)]
    assert Counter(states) == {"FAIL": 4, "COMPLETE": 4}


def test_a_result_outside_the_bounds_is_said_once_by_launch_and_by_the_worker(
    commands: Commands,
) -> None:
    said = commands.check("launch", *TINY, "study.bounds=[null,-1]", "worker.count=1")
    assert said.count("has a result outside study.bounds: value=") == 1
    assert "(at most -1)" in said
    assert "6/6 trials" in said
    (log,) = commands.directory.rglob("worker-1.log")
    assert log.read_text().count("outside study.bounds") == 1
    again = commands.check("launch", *TINY, "study.bounds=[null,9]")
    assert "changed study.bounds: at most -1 -> at most 9" in again
    assert "outside study.bounds" not in again


def test_a_pruner_that_hears_nothing_is_said_once_by_launch_and_by_the_worker(
    commands: Commands,
) -> None:
    said = commands.check(
        "launch", *TINY, "a=1", "pruner=median", "pruner.n_startup_trials=1", "worker.count=1"
    )
    assert said.count("pruner=median has nothing to judge: ") == 1
    (log,) = commands.directory.rglob("worker-1.log")
    assert (
        log.read_text().count("study tiny: pruner=median has nothing to judge: 1 trial completed")
        == 1
    )
    assert "pruner=median has nothing to judge: 6 trials completed" in commands.check("status")
    asleep = ("pruner=median", "pruner.n_startup_trials=2", "study.name=other")
    assert "pruner=median never acts: it compares" in commands.check(
        "launch", *TINY, *asleep, "--dry-run"
    )
    assert (
        "never acts"
        in json.loads(commands.check("launch", *TINY, *asleep, "--dry-run", "--json"))["remarks"][0]
    )


def test_a_pruner_that_waits_for_more_steps_than_there_are_is_said_once(
    commands: Commands,
) -> None:
    words = ("objective._target_=tests.support.training.curve", "pruner=median", "a=0,1")
    late = "pruner.n_warmup_steps=30"
    said = commands.check("launch", *TINY, *words, late, "worker.count=1")
    assert "pruner.n_startup_trials=auto is 1: a third of the 3 trials of a cell" in said
    waits = "it waits until step 30 (pruner.n_warmup_steps), and trials report up to step 9; "
    change = "set pruner.n_warmup_steps=2"
    assert said.count(f"pruner=median could not act so far: {waits}{change}") == 1
    assert waits in " ".join(commands.check("status").split())
    again = commands.check("launch", *TINY, *words, "budget.trials=12", "worker.count=1")
    assert "changed pruner.n_startup_trials: 1 -> 2" in again
    assert "could not act" not in again


def test_pruned_trials_count_once_their_cell_has_a_complete_one(
    commands: Commands, store: Store
) -> None:
    commands.check(
        "launch",
        *TINY,
        "objective._target_=tests.support.training.curve",
        "a=0,1",
        "pruner=median",
        "pruner.n_startup_trials=1",
        "budget.trials=16",
        "budget.per_cell=8",
        "sampler=random",
    )
    cells = store.reads.progress(store.reads.find("tiny"), maximize=True).cells
    assert all(c.completed >= 1 and c.completed + c.pruned == 8 for c in cells)
    assert sum(c.pruned for c in cells) > 0
    complete = next(
        t
        for t in optuna.load_study(study_name="tiny", storage=store.url).trials
        if t.state.name == "COMPLETE"
    )
    assert list(complete.intermediate_values) == list(range(10))
    assert complete.user_attrs["steps"] == 10


def test_several_objectives_end_with_a_pareto_front(commands: Commands) -> None:
    words = (
        "objective._target_=tests.support.training.two",
        "study.metric=[error,cost]",
        "study.direction=[minimize,minimize]",
    )
    said = commands.check("launch", *TINY, *words, "sampler=nsga2")
    assert "best trial" in said
    front = json.loads(commands.check("best", "--json"))["best"]
    values = [tuple(t["values"].values()) for t in front]
    assert all(
        not (a != b and all(x <= y for x, y in zip(a, b, strict=True)))
        for a in values
        for b in values
    )


@pytest.mark.parametrize(
    "sampler",  # other tests launch studies of the other ones
    ["qmc", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("tpe", "gp", "random"))],
)
def test_every_sampler_runs(commands: Commands, sampler: str) -> None:
    said = commands.check("launch", *TINY, f"sampler={sampler}", "worker.count=1")
    assert "finished: budget spent" in said


def test_couplings_stay_alive_and_secrets_stay_out(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", "s3cret-root")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "coupled.yaml").write_text(
        """# @package _global_
study: {name: coupled}
objective: {_target_: tests.support.training.coupled, root: "${oc.env:DATA_ROOT}"}
params:
  data: {batch_size: 32}
  optim: {lr: "${linear_scaling:0.1,256,${data.batch_size}}"}
grid: {data.batch_size: [64, 512]}
"""
    )
    commands.check("launch", f"--config-dir={tmp_path}", "experiment=coupled")
    store = Store(str(commands.url))
    trials = optuna.load_study(study_name="coupled", storage=store.url).trials
    assert {t.user_attrs["batch"]: t.value for t in trials} == {64: 0.025, 512: 0.2}
    assert {t.user_attrs["root"] for t in trials} == {"s3cret-root"}, (
        "resolved where the trial runs"
    )
    stored = store.reads.spec(store.reads.find("coupled").study_id)
    store.rest()
    assert "s3cret-root" not in json.dumps(stored.to_json())
    assert "${oc.env:DATA_ROOT}" in stored.config


def test_a_database_that_is_away_just_when_the_study_ends_is_waited_for(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.check(
        "launch", *TINY, "x=0.25", "a=0,1", "budget.per_cell=1", "budget.trials=2", "worker.count=1"
    )
    contenders, away = Reads.contenders, [True, True, False]

    def sometimes(reads: Reads, *arguments: object) -> list[TrialRow]:
        if away.pop(0):
            raise StoreUnavailableError("the database does not answer")
        return contenders(reads, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Reads, "contenders", sometimes)
    words = (
        *TINY,
        "x=0.25",
        "a=0,1",
        "budget.per_cell=1",
        "budget.trials=2",
        f"storage.url={commands.url}",
    )
    assert (
        main(["launch", *words, "worker.count=0", f"hydra.run.dir={commands.directory}/again"]) == 0
    )
    said = capsys.readouterr()
    assert said.err.count("the database does not answer; trying again") == 1
    assert "best of every cell" in said.out
