"""The facts of an attempt: what it ran on and what it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import __version__
from orchestrator.model import Completed, Failed
from orchestrator.runner.system import facts
from orchestrator.runner.system.memory import peak_device_bytes
from orchestrator.runner.system.sources import Sources
from tests.support.running import finish, make_job, running_with

DEVICE = {"name": "CPU", "key": "cpu"}


def git(directory: Path, *words: str) -> str:
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    return subprocess.run(
        ["git", "-C", str(directory), *who, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module in a repository of one commit."""
    path = tmp_path / "repository" / "code" / "train.py"
    path.parent.mkdir(parents=True)
    path.write_text("a = 1\n")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", ".")
    git(tmp_path / "repository", "commit", "-qm", "first")
    return path


def of(module: Path) -> Sources:
    """The sources of a program that is this module."""
    return Sources({"command": ["python", str(module)]})


def test_the_commit_is_told_with_changes_of_tracked_files(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    commit = git(repository, "rev-parse", "HEAD").strip()
    (repository / "notes.txt").write_text("untracked")
    clean = {"commit": commit, "dirty": False, "diff": None, "directory": str(repository.resolve())}
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    environment = facts.Environment(of(module))
    assert environment.code == clean
    module.write_text("a = 2\n")
    assert environment.code == clean, "what was imported is what counts"
    diffs = set()
    for text in ("a = 2\n", "a = 3\n", "a = 2\n"):
        module.write_text(text)
        environment.look_at_code()
        assert environment.code is not None
        diffs.add(environment.code["diff"])
        assert environment.code == clean | {"dirty": True, "diff": environment.code["diff"]}
    assert len(diffs - {None}) == 2, "the same changes are known again"


def test_an_installed_objective_is_of_the_repository_one_works_in(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(module.parent)
    code = facts.Environment(Sources({"_target_": "pytest.main"})).code
    assert code is not None
    assert code["directory"] == str(module.parents[1].resolve())


def test_without_git_or_a_repository_there_is_no_commit(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert facts.Environment(Sources({"_target_": "nowhere.train"})).code is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts.Environment(of(module)).code is None


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_an_attempt_tells_what_it_ran_on_and_what_it_and_its_processes_took(
    tmp_path: Path, start: str
) -> None:
    target = {"_target_": "tests.support.leaving.uses_memory", "megabytes": 150}
    with running_with(target, start=start, threads=1, device=DEVICE) as runner:
        job = make_job(tmp_path, target, seed=11)
        running = runner.start(job)
        assert isinstance(finish(running)[0], Completed)
    told: dict[str, Any] = running.facts
    assert (told["seed"], told["threads"], told["device"]) == (11, 1, DEVICE)
    assert told["packages"]["orchestrator"] == __version__
    assert told["python"] == sys.version.split()[0]
    assert told["git"] is None or len(told["git"]["commit"]) == 40
    assert told["peak_memory_bytes"] > 150 << 20
    assert told["duration_s"] > 0
    assert told["cpu_s"] > 0
    assert told["peak_device_bytes"] is None
    written = json.loads((job.run_dir / facts.FILE).read_text())
    assert (written["study"], written["trial"], written["attempt"]) == ("study", 0, 1)
    assert written["installed"]["numpy"]
    assert written["started_at"] < written["ended_at"]
    assert facts.for_database(written) == told == facts.read(job.run_dir)


def test_a_killed_child_leaves_its_facts(tmp_path: Path) -> None:
    target = {"_target_": "tests.support.leaving.dies"}
    with running_with(target) as runner:
        running = runner.start(make_job(tmp_path, target))
        assert isinstance(finish(running)[0], Failed)
    assert running.facts["seed"] == 7
    assert running.facts["packages"]
    assert running.facts["peak_memory_bytes"]


def test_facts_that_no_database_takes_are_left_out(tmp_path: Path) -> None:
    assert facts.read(tmp_path) == {}
    for text in ("{", "[1]", '{"host": "a\\u0000b"}', '{"host": "\\ud800"}'):
        (tmp_path / facts.FILE).write_text(text)
        assert facts.read(tmp_path) == {}


def test_the_peak_of_the_device_is_asked_of_torch_only_once_it_uses_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fake(**cuda: Any) -> None:
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(**cuda)))

    def broken(_index: int) -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_device_bytes() is None
    fake(is_initialized=lambda: False)
    assert peak_device_bytes() is None
    fake(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        max_memory_allocated=lambda index: 10 + index,
    )
    assert peak_device_bytes() == 21
    fake(is_initialized=lambda: True, device_count=lambda: 1, max_memory_allocated=broken)
    assert peak_device_bytes() is None


def test_each_attempt_of_a_program_tells_the_code_that_it_ran(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    target = {"command": ["sh", "run.sh"]}
    hashes = []
    with running_with(target, cwd=tmp_path) as runner:
        for number, text in enumerate(
            ("echo '{\"value\": 1}'\n", "echo '{\"value\": 1}'\n", "echo '{\"value\": 2.5}'\n")
        ):
            script.write_text(text)
            running = runner.start(
                make_job(tmp_path / "runs", target, params={}, values={}, number=number)
            )
            assert isinstance(finish(running)[0], Completed)
            source: Any = running.facts["source"]
            assert list(source["files"]) == ["run.sh"]
            hashes.append(source["hash"])
    assert hashes[0] == hashes[1] != hashes[2]
