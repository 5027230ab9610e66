"""Code and config that this process's user may not read, such as a bind mount of mode 0700: said,
with the directory's name.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.cli.preflight import check_shadows
from orchestrator.config import compose
from orchestrator.errors import ConfigError, denied
from orchestrator.runner.protocol.executable import check_program
from orchestrator.runner.protocol.target import describe_import_error, locate
from orchestrator.runner.system.sources import Sources

NOBODY = 65534


@contextmanager
def mode_counts(closed: Path) -> Iterator[None]:
    """Within this block nobody can read the directory `closed`, root neither: its mode is 0000, and
    this process is no root.
    """
    root = os.geteuid() == 0
    mode = closed.stat().st_mode
    closed.chmod(0)
    try:
        if root:
            os.seteuid(NOBODY)
            if unreadable := denied(Path(__file__)) or denied(sys.prefix):
                pytest.skip(f"as another user: {unreadable}")
        yield
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(mode)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with code and config; not below pytest's own, which others
    cannot enter.
    """
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    for name in ("conf/experiment", "closed_package"):
        (folder / name).mkdir(parents=True)
    (folder / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nparams: {x: 1}\n"
    )
    (folder / "closed_package" / "mine.py").write_text("def train(cfg, trial): ...\n")
    program = folder / "closed_package" / "train"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    shutil.rmtree(folder)


def refusal(folder: Path) -> str:
    return (
        f"{folder} cannot be read by user {os.geteuid()}: its mode is 0000 and its owner is user "
        f"{folder.stat().st_uid}"
    )


@pytest.mark.parametrize("closed", [".", "conf", "conf/experiment"])
def test_a_config_directory_that_cannot_be_read_is_one_clear_error(code: Path, closed: str) -> None:
    words = ["experiment=mine", "study.name=s", "objective._target_=a.b", "budget.trials=1"]
    assert compose("launch", words, config_dir="conf").config.params == {"x": 1}
    with mode_counts(code / closed), pytest.raises(ConfigError) as caught:
        compose("launch", words, config_dir="conf")
    with mode_counts(code / closed):
        expected = refusal((code / closed).resolve())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_found_where_nothing_can_be_read_is_said_with_the_reason(
    code: Path,
) -> None:
    with mode_counts(code):
        with pytest.raises(ModuleNotFoundError) as caught:
            locate("mine_that_is_hidden.train")
        told = describe_import_error("mine_that_is_hidden.train", caught.value)
        assert told.endswith(f"No module named 'mine_that_is_hidden'; {refusal(code)}")
    with pytest.raises(ModuleNotFoundError) as absent:
        locate("mine_that_is_hidden.train")
    told = describe_import_error("mine_that_is_hidden.train", absent.value)
    assert "No module named 'mine_that_is_hidden'; searched the working directory" in told
    assert "cannot be read" not in told


def test_a_package_that_cannot_be_read_is_not_taken_for_an_empty_one(code: Path) -> None:
    with mode_counts(code / "closed_package"):
        with pytest.raises(ConfigError) as caught:
            locate("closed_package.mine.train")
        assert str(caught.value).endswith(
            f"'closed_package' has no attribute 'mine'; {refusal(code / 'closed_package')}"
        )


@pytest.mark.parametrize("closed", [".", "closed_package"])
def test_a_program_that_cannot_be_reached_is_said_with_the_reason(code: Path, closed: str) -> None:
    check_program("closed_package/train")
    with (
        mode_counts(code / closed),
        pytest.raises(ConfigError, match=r"objective\.command: 'closed_package/train' ") as caught,
    ):
        check_program("closed_package/train")
    with mode_counts(code / closed):
        assert refusal((code / closed).resolve()) in str(caught.value)


def test_code_that_cannot_be_reached_counts_as_not_there(code: Path) -> None:
    (code / "train.py").write_text("import closed_package.mine\n")
    assert list(Sources({"_target_": "train.fit"}).look().digests) == [
        "train",
        "closed_package.mine",
    ]
    with mode_counts(code / "closed_package"):
        assert list(Sources({"_target_": "train.fit"}).look().digests) == ["train"]
        assert not Sources({"_target_": "closed_package.mine.train"}).look().digests
        assert not Sources({"command": "closed_package/train"}).look().digests


def test_what_cannot_be_read_hides_no_module(code: Path) -> None:
    with mode_counts(code):
        check_shadows(code)
    (code / "numpy").mkdir()
    with mode_counts(code / "numpy"):
        check_shadows(code)
