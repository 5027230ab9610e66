"""What one attempt comes to, whatever the objective does: with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed, Interrupted, Outcome, Pruned
from orchestrator.runner import (
    AttrSet,
    Import,
    Job,
    Message,
    PruneQuestion,
    Reported,
    Runner,
    TrialPruned,
    attempt_dir,
    check_allowed,
    read_result,
)
from orchestrator.runner.protocol.channel import wait_readable
from tests.support.running import (
    ROOT,
    alive,
    all_gone,
    finish,
    make_job,
    objective,
    own_children,
    pids_of,
    running_with,
)


def run(
    runs: Path, name: str, *, options: dict[str, Any] | None = None, **kwargs: Any
) -> tuple[Outcome, list[Message]]:
    with running_with(objective(name, **kwargs), **(options or {})) as runner:
        return finish(runner.start(make_job(runs, objective(name, **kwargs))))


# ---------------------------------------------------------------------------------- what it returns


def test_every_kind_of_number_is_a_result_and_nothing_else_is(tmp_path: Path) -> None:
    good = {
        "float": 0.5,
        "int": 3.0,
        "float32": 0.25,
        "array0": 0.75,
        "fraction": 0.25,
        "decimal": 0.5,
        "one_of_one": 0.5,
    }
    bad = {
        "nan": "nan for 'score': NaN is not a result",
        "inf": "-inf for 'score': no value is that good for a metric to be minimized",
        "none": "None is a NoneType, not a number",
        "bool": "True is a bool, not a number",
        "np_bool": "not a number",
        "str": "'1.5' is a str, not a number",
        "huge": "int is too large for a float",
        "array1": "2 values for 1 metric (score)",
        "complex": "not a number",
        "missing": "without the metric 'score'; it has 'scor', 'loss' (did you mean 'scor'?)",
        "nan_in_mapping": "nan for 'score'",
        "object": "not a number",
        "empty": "0 values for 1 metric",
    }
    with running_with(objective("give", what="float")) as runner:

        def outcome_of(what: str, number: int) -> Outcome:
            return finish(
                runner.start(make_job(tmp_path, objective("give", what=what), number=number))
            )[0]

        for number, (what, value) in enumerate(good.items()):
            assert outcome_of(what, number) == Completed((value,))
        for number, (what, message) in enumerate(bad.items(), 100):
            outcome = outcome_of(what, number)
            assert isinstance(outcome, Failed)
            assert outcome.kind == "value"
            assert message in outcome.message.splitlines()[0]


def test_a_mapping_gives_the_metric_and_attributes_and_says_what_it_left_out(
    tmp_path: Path,
) -> None:
    outcome, _ = run(tmp_path, "give", what="mapping")
    assert outcome == Completed((0.5,), {"epochs": 7, "curve": [1.0, "nan"]})
    log = attempt_dir(tmp_path, "study", 0, 1) / "output.log"
    assert (
        "the entry 'model' of the returned mapping was not stored: object cannot be converted "
        "to JSON"
    ) in log.read_text()


def test_several_objectives_take_a_sequence_and_refuse_reports(tmp_path: Path) -> None:
    with running_with(objective("several")) as runner:
        two = finish(runner.start(make_job(tmp_path, objective("several"), metrics=("a", "b"))))[0]
        three = finish(
            runner.start(
                make_job(tmp_path, objective("several"), metrics=("a", "b", "c"), number=1)
            )
        )[0]
    assert two == Completed((1.0, 2.0))
    assert isinstance(three, Failed)
    assert three.message.startswith("the objective returned 2 values for 3 metrics (a, b, c)")


# --------------------------------------------------------------------------------- what it is given


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_the_child_sees_its_job_and_only_what_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    for name in (
        "ORCHESTRATOR_STORAGE_URL",
        "ORCHESTRATOR_STORAGE_PASSWORD_FILE",
        "PGPASSWORD",
        "PGPASSFILE",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("DATA_ROOT", "/data")
    target = objective("see", factor="${model.factor}", extra={"root": "${oc.env:DATA_ROOT}"})
    params = {
        "presets": {"adam": {"lr": 0.1, "beta": 0.9, "wd": "${optim.lr}"}},
        "optim": "${presets.adam}",
        "data": {"batch_size": 64},
        "model": {"factor": 2},
        "scaled": "${linear_scaling:0.1,256,${data.batch_size}}",
        "rooted": "${sqrt_scaling:0.1,16,${data.batch_size}}",
    }
    values = {"optim.lr": 0.01, "data.batch_size": 512, "new.layers": [1, {"a": 2}]}
    options = {"start": start, "env": {"CUDA_VISIBLE_DEVICES": ""}, "threads": 1}
    with running_with(target, **options) as runner:
        job = make_job(
            tmp_path,
            target,
            params=params,
            values=values,
            number=4,
            attempt=2,
            seed=2**40 + 1,
            resumed=True,
        )
        outcomes = [finish(runner.start(job))[0] for _ in range(2)]
    assert isinstance(outcomes[0], Completed)
    assert isinstance(outcomes[1], Completed)
    seen, again = outcomes[0].attrs, outcomes[1].attrs
    assert outcomes[0].values == (1.0,)
    assert seen["cfg"]["optim"] == {"lr": 0.01, "beta": 0.9, "wd": 0.01}
    assert seen["cfg"]["scaled"] == pytest.approx(0.2)
    assert seen["cfg"]["rooted"] == pytest.approx(0.1 * 32**0.5)
    assert seen["cfg"]["new"] == {"layers": [1, {"a": 2}]}
    assert seen["extra"] == {"root": "/data"}
    assert seen["params"] == values
    fixed = {
        "number": 4,
        "attempt": 2,
        "device": "cpu",
        "seed": 2**40 + 1,
        "resumed": True,
        "checkpoint_dir_exists": True,
    }
    assert {key: seen[key] for key in fixed} == fixed
    assert seen["checkpoint_dir"] == str(
        tmp_path / "study" / "trial-4" / "attempt-2" / "checkpoints"
    )
    assert seen["random"] == again["random"]  # seeded alike
    assert seen["pid"] != again["pid"]
    assert seen["leads_its_session"]
    assert seen["path0"] == str(ROOT)
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert "secret" not in seen["environment"].values()
    # The keeper imported the objective for all of its forks; a spawned interpreter did so itself.
    assert (seen["imported_by"] == again["imported_by"] == seen["ppid"]) == (start == "forkserver")
    assert (seen["imported_by"] == seen["pid"]) == (start == "spawn")


def test_a_file_of_the_worker_does_not_reach_the_child_but_a_held_one_does(tmp_path: Path) -> None:
    with (tmp_path / "worker-only").open("w"), (tmp_path / "lock").open("w") as lock:
        outcome, _ = run(tmp_path, "see", options={"held": [lock.fileno()]})
        spawned, _ = run(tmp_path, "see", options={"held": [lock.fileno()], "start": "spawn"})
    for seen in (outcome, spawned):
        assert isinstance(seen, Completed)
        assert str(tmp_path / "lock") in seen.attrs["descriptors"]
        assert str(tmp_path / "worker-only") not in seen.attrs["descriptors"]


def test_reports_arrive_in_order_and_the_answer_prunes(tmp_path: Path) -> None:
    target = objective("report_and_ask", steps=10)
    with running_with(target) as runner:
        running = runner.start(make_job(tmp_path, target))
        outcome, messages = finish(running, lambda asked: asked.step == 3)
    assert outcome == Pruned(3)
    expected: list[Message] = []
    for step in range(4):
        expected += [Reported(step, float(step)), PruneQuestion(step)]
    assert messages == expected


def test_optunas_own_exception_prunes_at_the_highest_step_and_a_repeated_step_is_ignored(
    tmp_path: Path,
) -> None:
    outcome, messages = run(tmp_path, "pruned_like_optuna")
    assert outcome == Pruned(9)
    assert [(m.step, repr(m.value)) for m in messages if isinstance(m, Reported)] == [
        (3, "1.0"),
        (9, "nan"),
        (5, "2.0"),
    ]
    assert (
        "step 5 was reported before"
        in (attempt_dir(tmp_path, "study", 0, 1) / "output.log").read_text()
    )


def test_what_cannot_be_stored_is_refused_where_it_was_said(tmp_path: Path) -> None:
    outcome, messages = run(tmp_path, "refused")
    assert isinstance(outcome, Completed)
    errors = outcome.attrs["errors"]
    assert errors == {
        "str": "TypeError: '1.5' is a str, not a number",
        "bool": "TypeError: True is a bool, not a number",
        "none": "TypeError: None is a NoneType, not a number",
        "huge": "ValueError: int is too large for a float",
        "float_step": "TypeError: step must be an integer, got 1.5 (float)",
        "negative_step": "ValueError: step must be in 0 … 2147483647, got -1",
        "big_step": "ValueError: step must be in 0 … 2147483647, got 2147483648",
        "nul": "ValueError: user attribute 'a': text with a NUL character cannot be stored",
        "surrogate": "ValueError: user attribute 'a': text with a lone surrogate cannot be stored",
        "nul_key": (
            "ValueError: user attribute 'a\\x00': text with a NUL character cannot be stored"
        ),
        "int_key": (
            "TypeError: user attribute int: the name of a user attribute must be a string, "
            "got 1 (int)"
        ),
        "set": "TypeError: user attribute 'a': set cannot be converted to JSON",
        "bytes": "TypeError: user attribute 'a': bytes cannot be converted to JSON",
        "loop": "ValueError: user attribute 'a': it is nested too deeply or contains itself",
        "long": "ValueError: user attribute 'a': it takes more than 1,000,000 bytes as JSON",
    }
    kept = {"a": [1, [1.5]], "3": "inf", "none": None}
    assert messages == [AttrSet("kept", kept)]
    assert outcome.attrs["attrs"] == {"kept": kept}


def test_no_message_is_lost_however_many_there_are(tmp_path: Path) -> None:
    outcome, messages = run(tmp_path, "chatty", count=10_000)
    assert outcome == Completed((1.0,))
    assert [m.step for m in messages if isinstance(m, Reported)] == list(range(10_000))
    assert len(messages) == 20_000


# ------------------------------------------------------------------------------------- how it fails


def test_a_failure_ends_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, "noisy")
    assert isinstance(outcome, Failed)
    tail = outcome.message.splitlines()[2:]
    assert len(tail) == 15
    assert tail[-1] == "RuntimeError: after much noise"
    assert {"line 1999", "progress 100%", "raw \ufffd bytes", "from a subprocess"} <= set(tail)
    assert len(outcome.message) < 5000
    log = (attempt_dir(tmp_path, "study", 0, 1) / "output.log").read_bytes()
    assert b"\x1b[31mline 0\x1b[0m" in log  # the log itself is what was printed
    assert b"child.py" not in log  # and the traceback begins in the user's code


# ---------------------------------------------------------------------------- what it leaves behind


def test_exit_functions_of_the_trial_run_and_those_of_the_import_are_not_run_by_each_child(
    tmp_path: Path,
) -> None:
    (tmp_path / "my_exits.py").write_text(
        "import atexit, os, pathlib, tempfile\n"
        "shared = tempfile.TemporaryDirectory()\n"
        "atexit.register(print, 'exit function of the import')\n"
        "def train(cfg, trial):\n"
        "    own = tempfile.TemporaryDirectory()\n"
        "    atexit.register(print, 'exit function of the trial')\n"
        "    train.keep = own\n"
        "    return {'score': 1.0, 'shared': os.path.isdir(shared.name), 'own': own.name}\n"
    )
    target = {"_target_": "my_exits.train"}
    with running_with(target, cwd=tmp_path) as runner:
        outcomes = [finish(runner.start(make_job(tmp_path, target, number=n)))[0] for n in range(2)]
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Completed)
        assert outcome.attrs["shared"]
        assert not Path(outcome.attrs["own"]).exists()
        log = (attempt_dir(tmp_path, "study", number, 1) / "output.log").read_text()
        assert log.count("exit function of the trial") == 1
        assert "exit function of the import" not in log


def test_close_leaves_no_process(tmp_path: Path) -> None:
    before = set(own_children())
    runner = Runner(objective("hangs_with_grandchild"), cwd=ROOT, grace_s=0.2)
    running = runner.start(make_job(tmp_path, objective("hangs_with_grandchild")))
    pids = pids_of(tmp_path)
    runner.close()
    runner.close()
    assert running.outcome == Interrupted("the worker ended")
    assert all_gone(pids)
    assert set(own_children()) == before


def test_an_old_result_in_the_run_directory_is_moved_aside(tmp_path: Path) -> None:
    for _ in range(2):
        run(tmp_path, "give", what="float")
    assert (attempt_dir(tmp_path, "study", 0, 1) / "result.json.old-1").exists()


# ---------------------------------------------------------------------------------- ending it early


def test_terminate_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    with running_with(objective("hangs_with_grandchild"), grace_s=0.2) as runner:
        running = runner.start(make_job(tmp_path, objective("hangs_with_grandchild")))
        child, grandchild, keeper = pids_of(tmp_path)
        running.terminate("given back")
        assert running.outcome == Interrupted("given back")
        assert all_gone([child, grandchild])
        assert alive(keeper)


def test_sigterm_runs_finally_blocks_and_a_result_returned_after_it_counts(tmp_path: Path) -> None:
    with running_with(objective("cleans_up"), grace_s=20) as runner:
        running = runner.start(make_job(tmp_path, objective("cleans_up")))
        pids_of(tmp_path)
        running.terminate()
        assert running.outcome == Interrupted("ended by the worker")
        assert (running.job.checkpoint_dir / "cleaned").exists()
        running = runner.start(make_job(tmp_path, objective("finishes_when_terminated"), number=1))
        pids_of(tmp_path, 1)
        running.terminate()
        assert running.outcome == Completed((0.5,))


@pytest.mark.parametrize(
    ("value", "outcome"), [(None, Interrupted("stopped when asked")), (0.5, Completed((0.5,)))]
)
def test_a_child_asked_to_stop_may_return_nothing_or_its_result(
    tmp_path: Path, value: float | None, outcome: Outcome
) -> None:
    target = objective("stops_when_asked", value=value)
    with running_with(target) as runner:
        running = runner.start(make_job(tmp_path, target))
        pids_of(tmp_path)
        assert running.poll(0) == []
        running.ask_to_stop()
        assert finish(running)[0] == outcome


def test_sigterm_to_the_keeper_is_left_to_the_worker_to_decide(tmp_path: Path) -> None:
    with running_with(objective("stops_when_asked", value=1.0)) as runner:
        running = runner.start(make_job(tmp_path, objective("stops_when_asked", value=1.0)))
        pids_of(tmp_path)
        for keeper in own_children():
            os.kill(keeper, signal.SIGTERM)
        running.ask_to_stop()
        assert finish(running)[0] == Completed((1.0,))


def test_poll_does_not_wait_longer_than_asked_nor_a_quarter_of_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_with(objective("stops_when_asked", value=1.0)) as runner:
        running = runner.start(make_job(tmp_path, objective("stops_when_asked", value=1.0)))
        pids_of(tmp_path)
        waits: list[float] = []

        def wait(_: object, seconds: float) -> bool:
            waits.append(seconds)
            return wait_readable([], seconds)

        with monkeypatch.context() as patch:
            patch.setattr("orchestrator.runner.running.wait_readable", wait)
            for timeout, longest in ((0.0, []), (0.1, [0.1]), (60.0, [0.25])):
                waits.clear()
                assert running.poll(timeout) == []
                assert waits == pytest.approx(longest, abs=0.09), "as long as asked, once"
        running.ask_to_stop()
        finish(running)


def test_one_attempt_at_a_time(tmp_path: Path) -> None:
    with running_with(objective("stops_when_asked")) as runner:
        job: Job = make_job(tmp_path, objective("stops_when_asked"))
        running = runner.start(job)
        with pytest.raises(RuntimeError, match="one at a time"):
            runner.start(job)
        running.terminate()


# ------------------------------------------------------------------------------- what check refuses


def keepers() -> set[int]:
    """The keepers that this process has started and that live; it may start others itself."""
    name = b"orchestrator.runner.keeper"
    found = {pid: Path(f"/proc/{pid}/cmdline") for pid in own_children()}
    return {pid for pid, line in found.items() if line.exists() and name in line.read_bytes()}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"_target_": "tests.support.objectives.giv"},
            "has no attribute 'giv' (did you mean 'give'?)",
        ),
        ({"_target_": "tests.support.no_such.train"}, "'tests.support' has no attribute 'no_such'"),
        (
            {"_target_": "no_such_package.train"},
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ({"_target_": "tests.support.objectives.not_callable"}, "is not callable; its type is int"),
        (
            {"_target_": "tests.support.objectives.os.system"},
            "'tests.support.objectives.os' is the module 'os'",
        ),
        (
            objective("wants_epochs"),
            "cannot be called as (cfg, trial): missing a required argument: 'epochs'",
        ),
        (objective("give", what="x", wat=1), "got an unexpected keyword argument 'wat'"),
    ],
)
def test_check_says_in_one_line_what_is_wrong_with_the_objective(
    target: dict[str, Any], message: str
) -> None:
    before = keepers()
    with pytest.raises(ConfigError) as caught, running_with(target):
        pass
    assert message in str(caught.value)
    assert str(caught.value).startswith("objective._target_: ")
    assert "\n" not in str(caught.value)
    assert keepers() == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import missing_dependency",
            "cannot be imported: ModuleNotFoundError: No module named 'missing_dependency'",
        ),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('no')", "cannot be imported: SystemExit: no"),
        ("import os; os.write(2, b'bye\\n'); os._exit(3)", "ended the process (exit code 3): bye"),
        ("import os; os.abort()", "ended the process (SIGABRT)"),
        ("def train(:", "cannot be imported: SyntaxError: invalid syntax"),
    ],
)
def test_check_survives_whatever_the_import_does(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "my_training.py").write_text(body)
    with (
        pytest.raises(ConfigError) as caught,
        running_with({"_target_": "my_training.train"}, cwd=tmp_path),
    ):
        pass
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_whose_import_ends_the_process_is_told_from_the_objective_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def train(cfg, trial): ...\ndef measure(cfg, trial): ...")
    (tmp_path / "abrupt.py").write_text("import os, mine; os.write(2, b'bye\\n'); os._exit(3)")
    monkeypatch.chdir(tmp_path)
    probes = [{"_target_": name} for name in ("mine.measure", "abrupt.build", "mine.build")]
    importing = Import({"_target_": "mine.train"}, start="forkserver", also=probes)
    with pytest.raises(ConfigError, match=r"'abrupt\.build' ended the process .*3\): bye"):
        importing.check()
    assert importing.imported == 2
    importing.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            (
                "import threading, time\nthreading.Thread(target=time.sleep, args=(300,), "
                "daemon=True).start()"
            ),
            "starts threads",
        ),
        (
            (
                "import ctypes\nlibc, thread = ctypes.CDLL(None), ctypes.c_ulong()\n"
                "libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)"
            ),
            "starts native threads",
        ),
        pytest.param(
            "import torch\ntorch.set_num_threads(2)\ntorch.exp(torch.randn(1000000)).sum()",
            "starts native threads",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_an_import_that_does_not_survive_a_fork_makes_every_trial_a_fresh_interpreter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str, reason: str
) -> None:
    (tmp_path / "my_threads.py").write_text(
        f"{body}\nimport os\ndef train(cfg, trial):\n    return os.getpid()\n"
    )
    target = {"_target_": "my_threads.train"}
    with running_with(target, cwd=tmp_path) as runner:
        outcomes = [
            finish(runner.start(make_job(tmp_path / "runs", target, number=n)))[0] for n in range(2)
        ]
    assert all(isinstance(outcome, Completed) for outcome in outcomes)
    assert f"every trial starts a new interpreter: importing the objective {reason}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "thread"}, "runner.start: 'thread'"),
        ({"isolation": "process"}, "runner.isolation: 'process'"),
        ({"threads": 0}, "runner.threads: 0 must be at least 1"),
        ({"grace_s": -1}, "runner.grace_s: -1"),
        ({"max_runtime_s": 0}, "runner.max_runtime_s: 0"),
        ({"silence_s": 0}, "runner.silence_s: 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Runner(objective("give"), **changes)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"_target_": 3},
        {"_target_": "train"},
        {"_target_": "a..b"},
        {"_target_": "a.b", "_x_": 1},
    ],
)
def test_an_objective_without_a_usable_target_is_refused_before_any_process_starts(
    bad: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"^objective\._"):
        Runner(bad)


def test_a_target_runs_only_where_a_pattern_allows_it() -> None:
    target = {"_target_": "my_project.models.train", "epochs": 3}
    for patterns in (None, ["my_project.*"], ["other.*", "my_project.models.train"], ["*.train"]):
        check_allowed(target, patterns)
    for patterns, shown in (
        (["my_project"], "my_project"),
        (["My_project.*", "x.*"], "My_project.*, x.*"),
        ([], "nothing"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_allowed(target, patterns)
        assert str(caught.value) == (
            "objective._target_: 'my_project.models.train' may not run on this host; "
            f"worker.allow_targets allows {shown}"
        )
    with pytest.raises(ConfigError, match="is not a dotted path"):
        check_allowed({}, None)


def test_a_result_is_read_later_by_anybody(tmp_path: Path) -> None:
    run(tmp_path, "raises")
    run_dir = attempt_dir(tmp_path, "study", 0, 1)
    outcome = read_result(run_dir)
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("ValueError: first line")
    assert read_result(tmp_path / "nowhere") is None
    left = [
        "checkpoints",
        "environment.json",
        "job.json",
        "journal.jsonl",
        "output.log",
        "result.json",
    ]
    assert sorted(path.name for path in run_dir.iterdir()) == left


def test_study_names_cannot_leave_the_runs_directory(tmp_path: Path) -> None:
    for name in ("..", ".", "a/b", "../x", "/etc", "ümläut"):
        assert attempt_dir(tmp_path, name, 0, 1).resolve().parents[2] == tmp_path.resolve()


def test_trial_pruned_is_at_the_top_of_the_package() -> None:
    assert orchestrator.TrialPruned is TrialPruned
