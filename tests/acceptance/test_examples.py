"""The shipped examples as they are launched, beyond those of README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import cifar10
from tests.support.commands import Commands

pytestmark = pytest.mark.acceptance


def test_cifar10_trains_on_the_files_in_the_directory_of_the_environment(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10.write(tmp_path / "files")
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "files"))
    commands = Commands(database_url, tmp_path)
    # Everything but the checksums and the sizes is the example's own.
    words = ("experiment=cifar10", "objective._target_=tests.support.cifar10_objective.train")
    probes = ("probes.memory.build=tests.support.cifar10_objective.build", "probes.lr=null")
    small = ("model.backbone=small_cnn", "data.batch_size=10,20", "train.epochs=1")
    worker = ("worker.count=1", "worker.threads=1")
    said = commands.check("launch", *words, *probes, *small, "budget.per_cell=1", *worker)
    assert "study cifar10: 2 trials, 2 cells x 1 guaranteed" in said
    assert "finished: budget spent" in said
    report = json.loads(commands.check("best", "--json"))
    assert 0 <= report["best"][0]["values"]["val_accuracy"] <= 1
    assert {cell["completed"] for cell in report["cells"]} == {1}
    assert "probes: 2 of 2 measured" in said
