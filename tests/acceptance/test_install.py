"""The package as users install it: a wheel, not editable, used from a directory of their own with
module and config.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.commands import ROOT

pytestmark = pytest.mark.acceptance

TRAIN = """
import mylib


def train(cfg, trial):
    print("training with", cfg.optim.lr)
    return {"score": mylib.quality(cfg.optim.lr, cfg.model.width), "width": cfg.model.width}
"""
LIBRARY = """
import math


def quality(lr, width):
    return -abs(math.log10(lr) + 2) + 0.01 * width
"""
COMMANDS = """
import sys
from orchestrator.cli import main

command = []
for word in sys.argv[1:]:
    if word == "then":
        assert main(command) == 0, command
        command = []
        print("\\0", flush=True)
    else:
        command.append(word)
sys.exit(main(command))
"""
EXPERIMENT = """# @package _global_
study: {name: mine, direction: maximize, metric: score}
objective: {_target_: train.train}
params: {model: {width: 8}, optim: {lr: 0.1}}
grid: {model.width: [8, 16]}
search: {optim.lr: "tag(log, interval(1e-4, 1e-1))"}
budget: {trials: 6, per_cell: 2}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="builds the wheel without an index")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_config_travels_in_the_wheel_and_nothing_else_is_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"orchestrator"}
    assert "orchestrator/conf/config.yaml" in names
    assert "orchestrator/conf/experiment/digits.yaml" in names
    assert any(name.startswith("orchestrator/store/migrations/versions/0001") for name in names)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True, timeout=120
    )
    return folder


@dataclass(frozen=True)
class Installed:
    """The installed program, called in a directory of a user's with a study in it."""

    site: Path
    cwd: Path
    url: str

    def __post_init__(self) -> None:
        (self.cwd / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
        (self.cwd / "train.py").write_text(TRAIN)
        (self.cwd / "mylib.py").write_text(LIBRARY)
        (self.cwd / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)

    def __call__(self, *words: str) -> str:
        """Runs commands, with ``then`` between them, in one interpreter: each of its own would
        import all of it again.
        """
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ORCHESTRATOR_", "PYTEST_", "PYTHON"))
        }
        env |= {
            "PYTHONPATH": str(self.site),
            "ORCHESTRATOR_STORAGE_URL": self.url,
            "ORCHESTRATOR_DATA_DIR": str(self.cwd / "data"),
        }
        command = [sys.executable, "-P", "-c", COMMANDS, *words]
        done = subprocess.run(
            command, cwd=self.cwd, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_a_users_own_module_and_config_run_from_a_directory_outside_the_clone(
    site: Path, tmp_path: Path, database_url: str
) -> None:
    orchestrator = Installed(site, tmp_path, database_url)
    said = orchestrator("launch", "--config-dir", "conf", "experiment=mine", "worker.count=1")
    assert "study mine: 6 trials, 2 cells x 2 guaranteed" in said
    assert "finished: budget spent" in said
    where = ("launch", "--config-dir", "conf", "experiment=mine", "--info", "searchpath")
    best, log, path = orchestrator(
        "best", "study.name=mine", "then", "logs", "study.name=mine", "trial=0", "then", *where
    ).split("\0\n")
    assert yaml.safe_load(best)["params"]["model.width"] in (8, 16)
    assert "training with" in log
    assert str(site / "orchestrator" / "conf") in path


def test_the_installed_program_runs_in_a_clone_of_the_repository_as_well(
    site: Path, tmp_path: Path, database_url: str
) -> None:
    for package in ("orchestrator", "conf"):
        unbuilt = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=unbuilt)
    launch = ("launch", "--config-dir", "conf", "experiment=mine", "worker.count=1")
    assert "finished: budget spent" in Installed(site, tmp_path, database_url)(*launch)
