"""README's promises: two commands in the quick start, and the main job of the first one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Commands

pytestmark = pytest.mark.acceptance


def quick_start() -> list[str]:
    section = re.split(r"(?m)^## ", (ROOT / "README.md").read_text())
    (body,) = [part for part in section if part.startswith("Quick start")]
    return re.findall(r"(?ms)^```\w*\n(.*?)^```", body)


def test_the_quick_start_is_two_commands_of_one_line_each() -> None:
    blocks = quick_start()
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)
    assert blocks[0].strip().endswith("orchestrator launch experiment=digits")
    assert all("-c constraints.txt" in block for block in blocks)
    assert "pytest" in blocks[1]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert "make check-static" in script


def test_the_main_job_finds_a_network_that_reads_97_of_100_digits(
    database_url: str, tmp_path: Path
) -> None:
    commands = Commands(database_url, tmp_path, fresh=True)
    words = quick_start()[0].split("orchestrator launch ")[1].split()
    small = ("data.batch_size=32", "budget.trials=2", "budget.per_cell=1")
    said = commands.check(
        "launch", *words, *small, "worker.count=1", "worker.threads=1", timeout=380
    )
    assert "study digits: 2 trials, 2 cells x 1 guaranteed, sampler tpe" in said
    report = json.loads(commands.check("best", "--json"))
    assert report["best"][0]["values"]["val_accuracy"] >= 0.97
    assert {cell["completed"] for cell in report["cells"]} == {1}
