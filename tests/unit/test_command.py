"""What an attempt of a program comes to, however odd the program: with real processes, most of them
shell scripts.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed, Interrupted, Outcome, Pruned
from orchestrator.program import read
from orchestrator.runner import (
    AttrSet,
    Message,
    PruneQuestion,
    Reported,
    Runner,
    attempt_dir,
    check_allowed,
)
from orchestrator.runner.program.command import _hydra_words
from orchestrator.runner.program.metrics import Lines
from orchestrator.runner.protocol.executable import search_path
from tests.support.running import all_gone, finish, make_job, pids_of, running_with
from tests.support.waiting import wait_until

SHELL = {"command": ["sh", "-c", "{script}"]}
NEVER: Callable[[PruneQuestion], bool] = lambda _: False  # noqa: E731


@pytest.fixture(scope="module")
def shell() -> Iterator[Runner]:
    """Runs any script: it is a parameter, so one keeper serves all tests."""
    with running_with(SHELL) as runner:
        yield runner


def job(runs: Path, script: str, **changes: Any) -> Any:
    return make_job(
        runs,
        {**SHELL, **changes.pop("rules", {})},
        **{"params": {}, "values": {"script": script}, **changes},
    )


def attempt(
    shell: Runner,
    runs: Path,
    script: str,
    judge: Callable[[PruneQuestion], bool] = NEVER,
    **changes: Any,
) -> tuple[Outcome, list[Message]]:
    return finish(shell.start(job(runs, script, **changes)), judge)


def log_of(runs: Path, number: int = 0) -> bytes:
    return (attempt_dir(runs, "study", number, 1) / "output.log").read_bytes()


def attributes(messages: list[Message]) -> dict[str, Any]:
    return {m.key: m.value for m in messages if isinstance(m, AttrSet)}


def reports(messages: list[Message]) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in messages if isinstance(m, Reported)]


# --------------------------------------------------------------------------------- what it is given


@pytest.mark.parametrize("save", [True, False])
def test_a_flag_is_a_word_where_its_parameter_is_true(
    shell: Runner, tmp_path: Path, save: bool
) -> None:
    code = "import json, sys; print(json.dumps({{'value': 1, 'argv': sys.argv[1:]}}))"
    words = ["{flag:o.save}", "{flag:o.save:-s}", "{flag:o.save:--a b:--no-a}", "{o.save}"]
    target = {"command": [sys.executable, "-c", code, *words]}
    params = {"o": {"save": "${on}"}, "on": save, "optim": {"lr": 1}}
    outcome, messages = finish(shell.start(make_job(tmp_path / "runs", target, params=params)))
    assert outcome == Completed((1.0,))
    expected = ["--save", "-s", "--a b", "true"] if save else ["--no-a", "false"]
    assert attributes(messages)["argv"] == expected


def test_a_flag_that_is_neither_true_nor_false_in_a_trial_fails_it(
    shell: Runner, tmp_path: Path
) -> None:
    target = {"command": ["true", "{flag:on}"]}
    params = {"on": "${optim.lr}", "optim": {"lr": 1}}
    outcome, _ = finish(shell.start(make_job(tmp_path / "runs", target, params=params)))
    assert isinstance(outcome, Failed)
    assert "{flag:on} needs a parameter that is true or false, and on is " in outcome.message


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_a_program_gets_parameters_as_arguments_environment_and_file(
    tmp_path: Path, start: str
) -> None:
    code = (
        "import json, os, sys; f = json.load(open(sys.argv[1])); v = {k: w for k, w in "
        "os.environ.items() if 'ORCH' in k};print(json.dumps({'value': 1, 'argv': sys.argv[1:], "
        "'file': f, 'env': v, 'unbuffered': os.environ['PYTHONUNBUFFERED'], 'cwd': os.getcwd(), "
        "'devices': os.environ['CUDA_VISIBLE_DEVICES']}))"
    )
    words = [
        "{params_file}",
        "lr={optim.lr}",
        "{trial.number}/{trial.seed}",
        "{on} {none} {layers}",
        "{{x}}",
        "{name}",
    ]
    target = {"command": [sys.executable, "-c", code.replace("{", "{{").replace("}", "}}"), *words]}
    params = {
        "optim": {"lr": 0.1, "wd": "${.lr}"},
        "on": True,
        "none": None,
        "layers": [1, {"a": 2}],
        "name": "a  'b'",
    }
    with running_with(
        target, cwd=tmp_path, start=start, env={"CUDA_VISIBLE_DEVICES": "GPU-1"}
    ) as runner:
        outcome, messages = finish(
            runner.start(make_job(tmp_path / "runs", target, params=params, number=4, attempt=2))
        )
    assert outcome == Completed((1.0,))
    seen = attributes(messages)
    run_dir = attempt_dir(tmp_path / "runs", "study", 4, 2)
    assert seen["argv"] == [
        str(run_dir / "params.json"),
        "lr=0.01",
        "4/7",
        'true null [1,{"a":2}]',
        "{x}",
        "a  'b'",
    ]
    assert seen["file"]["params"] == {**params, "optim": {"lr": 0.01, "wd": 0.01}}
    checkpoints = str(run_dir / "checkpoints")
    facts: dict[str, Any] = {
        "number": 4,
        "attempt": 2,
        "resumed": False,
        "seed": 7,
        "device": "cpu",
        "checkpoint_dir": checkpoints,
    }
    facts["run_dir"] = str(run_dir)
    assert seen["file"]["trial"] == facts
    assert (seen["cwd"], seen["devices"], seen["unbuffered"]) == (str(tmp_path), "GPU-1", "1")
    expected = {
        **{
            "PARAM_OPTIM_LR": "0.01",
            "PARAM_OPTIM_WD": "0.01",
            "PARAM_ON": "true",
            "PARAM_NAME": "a  'b'",
            "STUDY_NAME": "study",
        },
        **{
            "TRIAL_NUMBER": "4",
            "TRIAL_SEED": "7",
            "TRIAL_CHECKPOINT_DIR": checkpoints,
            "TRIAL_DEVICE": "cpu",
        },
        "TRIAL_RUN_DIR": str(run_dir),
        **{
            "METRICS_FILE": str(run_dir / "metrics.jsonl"),
            "PARAMS_FILE": str(run_dir / "params.json"),
        },
    }
    assert {key: seen["env"].get(f"ORCHESTRATOR_{key}") for key in expected} == expected


def test_a_command_that_names_no_parameter_gets_all_as_hydra_overrides(tmp_path: Path) -> None:
    target = {"command": ["sh", "-c", 'printf "%s\\n" "$@"; echo "{{\\"value\\": $#}}"', "sh"]}
    params = {
        "a": {"text": "x, y", "none": None, "list": ["1", 1, True]},
        "word": "relu",
        "map": {},
        "lr": "${a.list[1]}",
    }
    with running_with(target) as runner:
        outcome, _ = finish(
            runner.start(make_job(tmp_path, target, params=params, values={"a.lr": 1e-05}))
        )
    assert outcome == Completed((7.0,))
    lines = log_of(tmp_path).decode().splitlines()[:-1]
    parser = OverridesParser.create()
    read = {o.key_or_group: o.value() for o in map(parser.parse_override, lines)}
    flat: dict[str, Any] = {
        "a.text": "x, y",
        "a.none": None,
        "a.list": ["1", 1, True],
        "a.lr": 1e-05,
        "word": "relu",
        "map": {},
        "lr": 1,
    }
    assert repr(sorted(read.items())) == repr(sorted(flat.items()))


def test_overrides_are_appended_or_not_when_that_is_said(shell: Runner, tmp_path: Path) -> None:
    script = 'echo "{\\"value\\": $#}"'
    for number, (said, count) in enumerate([("auto", 0.0), (False, 0.0), (True, 1.0)]):
        rules = {"command": ["sh", "-c", "{script}", "sh"], "overrides": said}
        assert attempt(shell, tmp_path, script, rules=rules, number=number)[0] == Completed(
            (count,)
        )


HYDRA_APP = """
import os
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    job = HydraConfig.get()
    there = os.path.exists(os.path.join(job.runtime.output_dir, ".hydra"))
    said = [job.runtime.output_dir, job.job.num, job.job.id, there]
    print(__import__("json").dumps({"value": cfg.lr, "said": said}))

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def hydra_app(tmp_path: Path) -> Path:
    """An app of Hydra's as people have them: decorated script, config beside it, and a package that
    starts it.
    """
    (tmp_path / "app" / "conf").mkdir(parents=True)
    (tmp_path / "app" / "conf" / "config.yaml").write_text("lr: 0.1\n")
    (tmp_path / "app" / "train.py").write_text(HYDRA_APP)
    (tmp_path / "app" / "conf" / "__init__.py").touch()
    (tmp_path / "app" / "lib").mkdir()
    (tmp_path / "app" / "lib" / "train.py").write_text(HYDRA_APP.replace('"conf"', '"../conf"'))
    (tmp_path / "app" / "start.py").write_text("from lib.train import main\nmain()\n")
    return tmp_path / "app"


def test_attempts_of_a_hydra_app_have_output_directories_of_their_own(
    hydra_app: Path, tmp_path: Path
) -> None:
    for number, script in enumerate(("train.py", "start.py")):
        target = {"command": [sys.executable, script]}
        with running_with(target, cwd=hydra_app) as runner:
            job = make_job(
                tmp_path / "runs", target, params={"lr": 0.1}, values={"lr": 0.5}, number=number
            )
            outcome, messages = finish(runner.start(job))
        assert outcome == Completed((0.5,))
        assert attributes(messages)["said"] == [
            str(job.run_dir / "hydra"),
            number,
            f"study-{number}",
            True,
        ]
    assert not (hydra_app / "outputs").exists()


@pytest.mark.parametrize(
    ("command", "more", "added"),
    [
        (["{python}", "train.py"], {}, ["hydra.run.dir", "hydra.job.num", "hydra.job.id"]),
        (
            ["{python}", "train.py", "lr={{lr}}"],
            {},
            ["hydra.run.dir", "hydra.job.num", "hydra.job.id"],
        ),
        (["{python}", "-m", "train"], {}, ["hydra.run.dir", "hydra.job.num", "hydra.job.id"]),
        (["{python}", "train.py", "hydra.run.dir=mine"], {}, ["hydra.job.num", "hydra.job.id"]),
        (["{python}", "train.py", "-m"], {}, ["hydra.sweep.dir"]),
        (["{python}", "-u", "-m", "train"], {}, ["hydra.run.dir", "hydra.job.num", "hydra.job.id"]),
        (["launcher", "--workers=2", "-m", "lib.train", "-m"], {}, ["hydra.sweep.dir"]),
        (["{python}", "-m", "train", "--multirun", "hydra.sweep.dir=mine"], {}, []),
        (["{python}", "start.py", "--lr", "{{lr}}"], {}, []),
        (["{python}", "train.py"], {"hydra": False}, []),
        (["{python}", "train.py"], {"overrides": False}, []),
        (["{python}", "plain.py"], {}, []),
        (["{python}", "mentions.py"], {}, []),
        (["{python}", "renamed.py"], {}, ["hydra.run.dir", "hydra.job.num", "hydra.job.id"]),
        (["{python}", "newer.py"], {}, ["hydra.run.dir", "hydra.job.num", "hydra.job.id"]),
        (["sh", "run.sh"], {}, []),
        (
            ["sh", "run.sh"],
            {"hydra": True, "overrides": False},
            ["hydra.run.dir", "hydra.job.num", "hydra.job.id"],
        ),
    ],
)
def test_only_hydra_apps_are_told_what_only_they_understand(
    hydra_app: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    more: dict[str, Any],
    added: list[str],
) -> None:
    (hydra_app / "plain.py").write_text("import argparse\n# as with @hydra.main(…)\n")
    (hydra_app / "run.sh").write_text("python train.py $@\n")
    mentions = (
        'from hydra import compose\n"""Not:\n@hydra.main()\n"""\n# '
        '@hydra.main(…)\nprint("hydra.main(")\n'
    )
    (hydra_app / "mentions.py").write_text(mentions)
    (hydra_app / "renamed.py").write_text(
        "import os, hydra as h\n@h.main(version_base=None)\ndef run(cfg): ...\n"
    )
    (hydra_app / "newer.py").write_text(
        "import hydra\n@hydra.main()\ndef main(cfg): ...\nsyntax of tomorrow\n"
    )
    monkeypatch.chdir(hydra_app)
    words = [word.format(python=sys.executable) for word in command]
    told = _hydra_words(read({"command": words, **more}), make_job(tmp_path / "a b", {}))
    assert [word.partition("=")[0] for word in told] == added
    parser = OverridesParser.create()
    directories = [
        o.value() for o in map(parser.parse_override, told) if o.key_or_group.endswith(".dir")
    ]
    assert directories == [str(attempt_dir(tmp_path / "a b", "study", 0, 1) / "hydra")] * len(
        directories
    )


# ------------------------------------------------------------------------------------- what it says


def test_json_lines_are_reports_the_last_value_the_result_and_other_keys_attributes(
    shell: Runner, tmp_path: Path
) -> None:
    script = """
    echo '{"level": "info", "msg": "not a metric"}'
    echo '{"step": 3, "value": 0.5, "loss": 2}'
    echo 'plain text {"step": 4, "value": 0.6}'
    printf '\\r 50%%|##  |\\r{"step": 2.0, "score": 0.7, "value": 9, "loss": 1.5}\\r'
    echo '{"step": 2, "value": 0.1}'
    echo '{"step": -1, "value": 0.2}'; echo '{"step": "x", "value": 0.3}'
    echo '{"step": 5, "value": NaN}'; echo '{"step": 6, "value": null}'
    echo '{"step": 7, "value": "8"}'
    echo '{"value": 0.25, "note": {"a": [NaN]}, "orchestrator:x": 1}'; printf '{"value": 0.75}'
    """
    outcome, messages = attempt(shell, tmp_path, script)
    assert outcome == Completed((0.75,))
    assert reports(messages)[:2] == [(3, 0.5), (2, 0.7)]
    (step, value) = reports(messages)[2]
    assert len(reports(messages)) == 3
    assert (step, math.isnan(value)) == (5, True)
    assert attributes(messages) == {"loss": 1.5, "note": {"a": ["nan"]}}
    log = log_of(tmp_path).decode()
    for text in (
        "step 2 was reported before",
        "step must be in 0",
        "None is a NoneType",
        "reserved for the program itself",
        "not a metric",
    ):
        assert text in log


def test_the_metrics_file_says_the_same_as_lines_appended_or_as_one_object(
    shell: Runner, tmp_path: Path
) -> None:
    lines = """
    for n in 1 2 3; do
      echo "{\\"step\\": $n, \\"value\\": 0.$n, \\"n\\": $n}" >> $ORCHESTRATOR_METRICS_FILE
    done
    """
    outcome, messages = attempt(shell, tmp_path, lines)
    assert (outcome, reports(messages)) == (Completed((0.3,)), [(1, 0.1), (2, 0.2), (3, 0.3)])
    assert attributes(messages) == {"n": 3}
    whole = 'printf \'{\\n "value": 0.5,\\n "n": 1\\n}\' > "$ORCHESTRATOR_METRICS_FILE"'
    outcome, messages = attempt(shell, tmp_path, whole, number=1)
    assert (outcome, attributes(messages)) == (Completed((0.5,)), {"n": 1})
    (attempt_dir(tmp_path, "study", 2, 1)).mkdir(parents=True)
    (attempt_dir(tmp_path, "study", 2, 1) / "metrics.jsonl").write_text('{"value": 1}\n')
    stale = attempt(shell, tmp_path, "true", number=2)[0]
    assert isinstance(stale, Failed), "a file of an earlier study of that name is no result"


def test_a_metrics_file_prunes_while_the_program_runs_and_may_be_rewritten(
    shell: Runner, tmp_path: Path
) -> None:
    script = """
    echo '{"step": 1, "value": 1}' > "$ORCHESTRATOR_METRICS_FILE"
    while [ ! -e "$ORCHESTRATOR_TRIAL_CHECKPOINT_DIR/go" ]; do sleep 0.01; done
    echo '{"step": 2, "value": 2}' > "$ORCHESTRATOR_METRICS_FILE"
    sleep 60
    """

    def judge(asked: PruneQuestion) -> bool:
        (attempt_dir(tmp_path, "study", 0, 1) / "checkpoints" / "go").touch()
        return asked.step == 2

    outcome, messages = attempt(shell, tmp_path, script, judge)
    assert (outcome, reports(messages)[-1]) == (Pruned(2), (2, 2.0))


@pytest.mark.parametrize(
    ("result", "metrics", "script", "expected"),
    [
        (
            {"metric": "test"},
            ("score",),
            """echo '{"step": 1, "test": 3, "value": 1}'; echo '{"value": 2}'""",
            (3.0,),
        ),
        (
            {"metric": "value"},
            ("score",),
            """echo '{"value": 1, "score": 2}'; echo '{"score": 3}'""",
            (1.0,),
        ),
        (
            {"regex": "final: ([0-9.]+)"},
            ("score",),
            "(echo final: 1, final: 3.5) >&2; echo '{\"value\": 9}'",
            (3.5,),
        ),
        ({"regex": "(.+) of (.+)"}, ("a", "b"), "printf '1e-3 of -inf\\n2 of 3'", (2.0, 3.0)),
        (
            "last",
            ("a", "b"),
            """echo '{"a": 1, "value": 7}'; echo '{"step": 1, "b": 2}'; echo '{"a": 3}'""",
            (3.0, 2.0),
        ),
        ({"metric": ["x", "y"]}, ("a", "b"), """echo '{"x": 1, "y": 2, "a": 5}'""", (1.0, 2.0)),
        (
            "last",
            ("score",),
            "true",
            "objective.result=last: the program ended without a value of 'score'",
        ),
        (
            {"metric": "tset"},
            ("score",),
            "echo '{\"value\": 1}'",
            "objective.result.metric: the program ended without",
        ),
        (
            {"regex": "final: (.+)"},
            ("score",),
            "echo fin",
            "objective.result.regex='final: (.+)' matched no line",
        ),
        (
            {"regex": "final: (.+)"},
            ("score",),
            "echo final: x",
            "found 'x' for 'score', which is not a number",
        ),
        ("last", ("score",), "echo '{\"value\": NaN}'", "nan for 'score': NaN is not a result"),
        ("last", ("a", "b"), "echo '{\"a\": 1}'", "without a value of 'b'"),
    ],
)
def test_the_result_is_what_the_rule_says_or_the_failure_names_the_rule(
    shell: Runner, tmp_path: Path, result: Any, metrics: tuple[str, ...], script: str, expected: Any
) -> None:
    outcome, _ = attempt(shell, tmp_path, script, rules={"result": result}, metrics=metrics)
    if isinstance(expected, str):
        assert isinstance(outcome, Failed)
        assert (outcome.kind, expected in outcome.message.splitlines()[0]) == ("value", True), (
            outcome.message
        )
    else:
        assert outcome == Completed(expected)


def test_binary_output_and_endless_lines_pass_into_the_log_and_disturb_nothing(
    shell: Runner, tmp_path: Path
) -> None:
    script = """
    printf '\\377\\000{\\n{"value": \\377}\\n{"value"'; echo; echo '{"value": 1e999}'; echo '{"a":'
    head -c 3000000 /dev/zero | tr '\\0' '['; echo
    echo '{"value": 2}'; echo err >&2
    """
    outcome, messages = attempt(shell, tmp_path, script)
    assert (outcome, messages) == (Completed((2.0,)), [])
    log = log_of(tmp_path)
    assert log.startswith(b'\xff\x00{\n{"value": \xff}\n')
    assert log.count(b"[") == 3_000_000
    assert b"err\n" in log


@given(
    st.lists(st.sampled_from([b"{", b"a", b"\n", b"\r", b"{b}\n", b"cc\n"]), max_size=30),
    st.booleans(),
)
def test_lines_are_the_same_however_they_arrive(pieces: list[bytes], picked: bool) -> None:
    lines = Lines(b"{" if picked else b"")
    taken = [line for piece in pieces for line in lines.feed(piece)]
    taken.append(lines.rest())
    wanted = [line for line in re.split(rb"[\r\n]", b"".join(pieces)) if b"{" in line or not picked]
    assert [line for line in taken if line and (b"{" in line or not picked)] == [
        line for line in wanted if line
    ]


# -------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("script", "kind", "causes", "text"),
    [
        ("echo oh no >&2; exit 3", "exit", ("exit", "exit:3"), "exited with code 3"),
        ("echo '{\"value\": 1}'; exit 75", "exit", ("exit", "exit:75"), "exited with code 75"),
        ("kill -9 $$", "signal", ("signal", "signal:SIGKILL"), "killed by SIGKILL"),
        ("kill -SEGV $$", "signal", ("signal", "signal:SIGSEGV"), "killed by SIGSEGV"),
        ("kill -TERM $$", "signal", ("signal", "signal:SIGTERM"), "killed by SIGTERM"),
    ],
)
def test_a_program_that_fails_says_how_in_the_words_of_retry_on(
    shell: Runner, tmp_path: Path, script: str, kind: str, causes: tuple[str, ...], text: str
) -> None:
    outcome, _ = attempt(shell, tmp_path, script)
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.causes, text in outcome.message) == (kind, causes, True)
    assert outcome.message.splitlines()[1].startswith("log: ")
    assert "Traceback" not in log_of(tmp_path).decode()
    assert "oh no" not in script or outcome.message.endswith("oh no")


PIDS = 'cd "$ORCHESTRATOR_TRIAL_CHECKPOINT_DIR"; sleep 61 & echo "[$$, $!]" > .p; mv .p pids.json;'
"""Says which processes the script has: itself, and one that it leaves running."""


def test_pruning_sends_term_then_kill_and_keeps_what_it_said(shell: Runner, tmp_path: Path) -> None:
    polite = "trap 'echo saved; exit 0' TERM; " + PIDS
    deaf = "trap '' TERM; " + PIDS
    steps = """
    for n in 1 2; do echo "{\\"step\\": $n, \\"value\\": $n, \\"n\\": $n}"; done
    while :; do sleep 0.05; done
    """
    for number, script in enumerate((polite + steps, deaf + steps)):
        outcome, messages = attempt(
            shell, tmp_path, script, lambda asked: asked.step == 2, number=number
        )
        assert (outcome, reports(messages)) == (Pruned(2), [(1, 1.0), (2, 2.0)])
        assert attributes(messages)["n"] == 2
        assert all_gone(pids_of(tmp_path, number))
    assert "saved" in log_of(tmp_path, 0).decode()


def test_asked_to_stop_it_gets_term_and_may_save_a_checkpoint(
    shell: Runner, tmp_path: Path
) -> None:
    script = (
        "trap 'echo state > ckpt; exit 0' TERM; "
        + PIDS
        + """ echo '{"step": 1, "value": 1}'; while :; do sleep 0.02; done"""
    )
    running = shell.start(job(tmp_path, script))
    pids = pids_of(tmp_path)
    running.ask_to_stop()
    outcome, _ = finish(running)
    assert outcome == Interrupted("stopped when asked")
    assert (attempt_dir(tmp_path, "study", 0, 1) / "checkpoints" / "ckpt").read_text() == "state\n"
    assert all_gone(pids)


@pytest.mark.parametrize("deaf", [False, True])
def test_ended_by_the_worker_the_program_has_its_grace_and_leaves_nothing(
    shell: Runner, tmp_path: Path, deaf: bool
) -> None:
    trap = "trap '' TERM; " if deaf else "trap 'sleep 0.1; echo late words; exit 0' TERM; "
    running = shell.start(job(tmp_path, trap + PIDS + " while :; do sleep 0.02; done"))
    pids = pids_of(tmp_path)
    running.terminate("drained")
    assert running.outcome == Interrupted("drained")
    assert all_gone(pids)
    assert deaf or "late words" in log_of(tmp_path).decode()


def test_a_program_does_not_outlive_its_child_nor_its_keeper(tmp_path: Path) -> None:
    with running_with(SHELL) as runner:
        outcome, _ = attempt(runner, tmp_path, PIDS + " kill -9 $PPID; sleep 62")
        assert isinstance(outcome, Failed)
        assert outcome.causes == ("signal", "signal:SIGKILL")
        assert all_gone(pids_of(tmp_path))
        script = PIDS + " kill -9 $(ps -o ppid= -p $PPID); sleep 63"
        lost, _ = attempt(runner, tmp_path, script, number=1)
        assert isinstance(lost, Interrupted)
        assert lost.lost
        wait_until(lambda: all_gone(pids_of(tmp_path, 1)))


def test_a_time_limit_fails_it(tmp_path: Path) -> None:
    with running_with(SHELL, max_runtime_s=0.3) as runner:
        outcome, _ = attempt(runner, tmp_path, "echo '{\"value\": 1}'; sleep 64")
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"


def test_it_ends_with_the_program_whoever_holds_its_output(shell: Runner, tmp_path: Path) -> None:
    forked = PIDS + " setsid sleep 65 & echo '{\"value\": 1}'"
    outcome, _ = attempt(shell, tmp_path, forked)
    assert outcome == Completed((1.0,))
    assert all_gone(pids_of(tmp_path))
    closed = "exec >&- 2>&-; sleep 0.3; echo '{\"value\": 2}' > $ORCHESTRATOR_METRICS_FILE"
    assert attempt(shell, tmp_path, closed, number=1)[0] == Completed((2.0,))


# -------------------------------------------------------------------------- whether it can run here


def test_a_program_that_is_not_there_is_found_out_before_and_loses_no_trial_after(
    tmp_path: Path,
) -> None:
    for name, text in (
        ("no-such-program", "on the PATH"),
        ("./gone.sh", "does not exist"),
        ("./plain.txt", "chmod"),
    ):
        (tmp_path / "plain.txt").write_text("echo")
        with (
            pytest.raises(ConfigError, match=text) as caught,
            running_with({"command": name}, cwd=tmp_path),
        ):
            pass
        assert str(caught.value).startswith("objective.command: ")
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/sh\necho '{\"value\": 1}'\n")
    script.chmod(0o755)
    target = {"command": "./train.sh"}
    with running_with(target, cwd=tmp_path) as runner:
        assert finish(runner.start(make_job(tmp_path, target)))[0] == Completed((1.0,))
        script.write_bytes(b"\x7fELF nonsense")
        broken, _ = finish(runner.start(make_job(tmp_path, target, number=1)))
        assert isinstance(broken, Failed)
        assert broken.kind == "exception"
        assert "could not be started: OSError" in broken.message.splitlines()[0]
        script.unlink()
        outcome, _ = finish(runner.start(make_job(tmp_path, target, number=2)))
    assert isinstance(outcome, Interrupted)
    assert outcome.lost
    assert outcome.reason.startswith(
        "the objective no longer runs here: objective.command: './train.sh' does not exist"
    )


def test_which_programs_may_run_here_is_said_by_patterns_of_their_own() -> None:
    python, script = {"command": "python train.py"}, {"command": ["/opt/lab/train.sh"]}
    for patterns, good in (
        (None, [python, script]),
        (["command:python"], [python]),
        (["my.*", "command:/opt/lab/*"], [script]),
        (["command:*"], [python, script]),
        (["*", "python", "pyt*"], []),
    ):
        for target in (python, script):
            if target in good:
                check_allowed(target, patterns)
            else:
                with pytest.raises(
                    ConfigError, match=r"objective.command: 'command:.* may not run on this host"
                ):
                    check_allowed(target, patterns)
    with pytest.raises(ConfigError, match="may not run"):
        check_allowed({"command": "/opt/lab/../../bin/sh"}, ["command:/opt/lab/*"])
    with pytest.raises(ConfigError, match="may not run"):
        check_allowed({"_target_": "command.python"}, ["command:*"])


@pytest.mark.parametrize("activated", [False, True])
def test_python_is_that_of_the_worker_unless_an_environment_is_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activated: bool
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path) if activated else "")
    monkeypatch.setattr(sys, "prefix", "/somewhere/.venv")
    found = search_path().split(":")
    assert found == [
        *([] if activated else [str(Path(sys.executable).parent)]),
        str(tmp_path),
        "/usr/bin",
        "/bin",
    ]
