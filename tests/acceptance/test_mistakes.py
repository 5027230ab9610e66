"""A user's mistake gets one line that names it, a code that is not 0, no traceback, and leaves
nothing behind.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.cli import main, waiting
from orchestrator.store import Store
from tests.support.commands import CONFIG

TINY = (f"--config-dir={CONFIG}", "experiment=tiny")

MISTAKES = {
    "unknown command": (("lunch",), "did you mean 'launch'"),
    "unknown key": (("launch", *TINY, "budget.trails=3"), "did you mean 'budget.trials'"),
    "unknown parameter": (("launch", *TINY, "kindd=3"), "did you mean 'kind'"),
    "unknown option": (("launch", *TINY, "sampler=tpee"), "did you mean 'tpe'"),
    "unknown experiment": (("launch", *TINY[:1], "experiment=tinny"), "did you mean 'tiny'"),
    "experiment of one's own": (("launch", "experiment=mine"), "add --config-dir=conf"),
    "experiment not in the directory": (
        ("launch", *TINY[:1], "experiment=mine"),
        f"(searched {CONFIG / 'experiment'} and the shipped config)",
    ),
    "objective elsewhere": (
        ("launch", *TINY, "objective._target_=nosuch.train"),
        f"searched the working directory {Path.cwd()}, then the installed packages",
    ),
    "wrong target of a dry run": (
        ("launch", *TINY, "objective._target_=tests.support.training.quik", "--dry-run"),
        "did you mean",
    ),
    "async objective": (
        ("launch", *TINY, "objective._target_=tests.support.training.later"),
        "is an async function",
    ),
    "generator as objective": (
        ("launch", *TINY, "objective._target_=tests.support.training.yields"),
        "is a generator",
    ),
    "worker of one study": (("worker", "study.name=tiny"), "write worker.studies=[tiny]"),
    "no place for a database": (
        ("status", "storage=embedded", "storage.path=/dev/null/postgres"),
        "set ORCHESTRATOR_DATA_DIR to a directory",
    ),
    "how many studies": (("status", "n=many"), "must be a whole number or all"),
    "wrong type": (("launch", *TINY, "budget.trials=many"), "budget.trials"),
    "in grid and search": (("launch", *TINY[:1], "experiment=both"), "a"),
    "empty grid": (("launch", *TINY, "grid.a=[]"), "a"),
    "low above high": (("launch", *TINY, "x='interval(1,0)'"), "x"),
    "log of zero": (("launch", *TINY, "x='tag(log,interval(0,1))'"), "log"),
    "no such module": (("launch", *TINY, "objective._target_=no.such.module"), "no.such.module"),
    "no such function": (
        ("launch", *TINY, "objective._target_=tests.support.training.quik"),
        "did you mean",
    ),
    "not callable": (
        ("launch", *TINY, "objective._target_=tests.support.objectives.not_callable"),
        "callable",
    ),
    "shares above budget": (("launch", *TINY, "budget.trials=5"), "5"),
    "two samplers": (("launch", *TINY, "sampler=gp,tpe"), "sampler"),
    "sweep of a setting": (("launch", *TINY, "budget.trials=10,20"), "budget.trials"),
    "multirun": (("launch", "-m", *TINY), "multirun"),
    "unknown tag": (("launch", *TINY, "x='tag(lgo,interval(1,2))'"), "lgo"),
    "glob": (("launch", *TINY, "x='glob(*)'"), "glob"),
    "no study name": (("launch", *TINY, "study.name=null"), "study.name"),
    "bad study name": (("launch", *TINY, "study.name='../up'"), "study.name"),
    "study setting to a worker": (("worker", "budget.trials=3"), "budget"),
    "no such study": (("best", "study.name=nothing"), "nothing"),
    "logs without a number": (("logs",), "trial=N"),
    "a log followed as JSON": (("logs", "-f", "--json", "trial=0"), "leave out --json"),
    "no such state": (("trials", "state=fialed"), "did you mean 'failed'"),
    "two forms of a list": (("trials", "--csv", "--json"), "only one of --json and --csv"),
    "deletion of nothing": (("delete", "--yes"), "study.name must be given"),
    "db without an action": (("db",), "start, stop, url, upgrade"),
    "a health file of several": (
        ("launch", *TINY, "worker.count=2", "worker.health_file=/tmp/h"),
        "worker.count=1",
    ),
    "unknown flag": (("launch", *TINY, "--dry-rnu"), "did you mean '--dry-run'"),
    "unknown flag of a command": (("doctor", "--jsn"), "did you mean '--json'"),
    "no place for runs": (
        ("launch", *TINY, "paths.runs=/dev/null/runs"),
        "set ORCHESTRATOR_DATA_DIR to a directory",
    ),
    "retry of something": (("launch", *TINY, "retry=fialed"), "retry=fialed: must be retry=failed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_starts_nothing(
    mistake: str,
    database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, named = MISTAKES[mistake]
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(waiting, "MOMENT_S", 1000.0)  # a busy machine is no mistake
    output = [f"hydra.run.dir={tmp_path}/output"] if words[0] == "launch" else []
    code = main([*(word.replace("'", "") if "(" in word else word for word in words), *output])
    error = capsys.readouterr().err
    assert code not in (0, None)
    assert error.startswith("orchestrator: error: ")
    assert len(error.strip().splitlines()) == 1
    assert named in error
    store = Store(database_url)
    assert store.reads.studies() == []
    store.rest()
    assert not (tmp_path / "output").exists()


def test_an_unreachable_database_is_one_line_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", "postgresql://me:s3cret@127.0.0.1:9/nothing")
    code = main(["status"])
    error = capsys.readouterr().err
    assert code == 3
    assert len(error.strip().splitlines()) == 1
    assert "127.0.0.1:9" in error
    assert "s3cret" not in error


def test_another_space_under_the_same_name_says_what_differs(
    database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", database_url)
    launch = [
        "launch",
        *TINY,
        f"hydra.run.dir={tmp_path}",
        "worker.count=1",
        "budget.trials=3",
        "budget.per_cell=1",
    ]
    assert main(launch) == 0
    assert main([*launch, "x=interval(0,2)", "study.direction=minimize"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"study.direction \(maximize there, minimize here\).*search x .*study\.name=", error
    )


def test_a_metric_missing_from_the_result_fails_the_trial_and_the_launch(
    database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    words = [
        "objective._target_=tests.support.training.curve",
        "study.metric=valeu",
        "budget.max_failures_per_cell=0",
    ]
    code = main(
        [
            "launch",
            *TINY,
            f"hydra.run.dir={tmp_path}/o",
            "worker.count=1",
            "a=1",
            "budget.trials=2",
            *words,
        ]
    )
    error = capsys.readouterr().err
    assert code == 7
    assert "no trial of study tiny completed" in error
    assert "valeu" in error
    assert "did you mean 'value'" in error
