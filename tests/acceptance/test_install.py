"""The package as users install it: a wheel, not editable, used from a directory of their own with
module and config.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
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


def test_a_users_own_module_and_config_run_from_a_directory_outside_the_clone(
    wheel: Path, tmp_path: Path, database_url: str
) -> None:
    site, mine = tmp_path / "site", tmp_path / "mine"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (mine / "conf" / "experiment").mkdir(parents=True)
    (mine / "train.py").write_text(TRAIN)
    (mine / "mylib.py").write_text(LIBRARY)
    (mine / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ORCHESTRATOR_", "PYTEST_", "PYTHON"))
    }
    env |= {
        "PYTHONPATH": str(site),
        "ORCHESTRATOR_STORAGE_URL": database_url,
        "ORCHESTRATOR_DATA_DIR": str(tmp_path / "data"),
    }

    def orchestrator(*words: str) -> str:
        """Runs commands, with ``then`` between them, in one interpreter: each of its own would
        import all of it again.
        """
        command = [sys.executable, "-P", "-c", COMMANDS, *words]
        done = subprocess.run(
            command, cwd=mine, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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
