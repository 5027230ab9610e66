"""README's promises: two commands in the quick start, the main job of the first one, and examples
that run as they are typed.
"""

from __future__ import annotations

import json
import re
import shlex
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


def typed(page: str, heading: str, directory: Path) -> tuple[list[str], Path]:
    """Writes the files of a section into a directory as the page shows them.

    Returns:
        The words after ``orchestrator launch`` in its command, and the directory to type it in.
    """
    sections = re.split(r"(?m)^## ", (ROOT / page).read_text())
    (body,) = [part for part in sections if part.startswith(heading)]
    for block in re.findall(r"(?ms)^```(?:python|yaml)\n(.*?)^```", body):
        name = re.search(r"(?m)^# ([\w/]+\.\w+)", block)
        assert name is not None, "a block without the name of its file"
        path = directory / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    (line,) = re.findall(r"(?m)^(?:cd .* && )?orchestrator launch .*$", body)
    *away, command = line.split(" && ")
    words = shlex.split(command)[2:]
    return words, directory / (away[0].removeprefix("cd ") if away else "")


@pytest.mark.parametrize(
    ("page", "heading", "study", "smaller"),
    [
        ("README.md", "Your own study", "mine", ("epochs=3", "budget.trials=12")),
        pytest.param(
            *("docs/objectives.md", "A function written for Optuna", "tuned", ("budget.trials=6",)),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_an_example_runs_as_it_is_typed(
    database_url: str, tmp_path: Path, page: str, heading: str, study: str, smaller: tuple[str, ...]
) -> None:
    words, directory = typed(page, heading, tmp_path)
    commands = Commands(database_url, tmp_path / "data", cwd=directory)
    plan = commands.check("launch", *words, "--dry-run")
    assert "never acts" not in plan, "its pruner cannot prune"
    said = commands.check("launch", *words, *smaller, timeout=380)
    assert "finished: budget spent" in said
    assert "failed" not in said.replace("done  pruned  failed", "")
    report = json.loads(commands.check("best", "--json", f"study.name={study}"))
    assert all(cell["completed"] or cell["pruned"] for cell in report["cells"])


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
