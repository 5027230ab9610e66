"""The command `report`: what a study says, as a page, Markdown or JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from orchestrator.cli import screen
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError
from orchestrator.model import count_label

if TYPE_CHECKING:
    from orchestrator.report import Report

_STDOUT: Final = "-"


def run(call: Call) -> int:
    """Writes the page, or prints Markdown or JSON; `out` names another file, ``-`` prints it."""
    out = call.words.get("out")
    as_markdown = "--markdown" in call.switches
    if out == "":
        raise ConfigError("out=: needs a file name, such as out=report.html, or out=-")
    if call.json and as_markdown:
        raise ConfigError("--json and --markdown exclude each other; leave out one of them")
    if call.json and out not in (None, _STDOUT):
        raise ConfigError(f"--json prints to standard output; leave out out={out}")
    from orchestrator.report.page import write
    from orchestrator.report.report import MARKDOWN, report_of

    with call.reading() as store:
        report = report_of(store, call.study_name, call.groups)
    if call.json:
        print(screen.as_json(report.data))
        return 0
    as_markdown = as_markdown or (out or "").endswith(MARKDOWN)
    if out == _STDOUT or (as_markdown and out is None):
        print(report.markdown() if as_markdown else report.html(), end="")
        return 0
    text = report.markdown() if as_markdown else report.html()
    file = write(out or f"{_file_name(report.study)}-report.html", text)
    print(f"wrote {file}: {_counts(report)}")
    return 0


def _file_name(study: str) -> str:
    """The study's name as part of the name of a file."""
    return re.sub(r"[^\w.-]+", "-", study).strip(".-") or "study"


def _counts(report: Report) -> str:
    words = [count_label(len(report.statements), "statement")]
    words += [count_label(len(report.pictures), "picture")] if report.pictures else []
    return ", ".join(words)
