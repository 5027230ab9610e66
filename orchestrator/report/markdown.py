"""The report as Markdown: the same statements and tables as on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.model import visible
from orchestrator.report.tables import Table, cell_text, typed_text

if TYPE_CHECKING:
    from orchestrator.report.report import Report
    from orchestrator.report.statement import Statement

_SPECIAL = re.compile(r"([\\*_\[\]<>#])")
_CODE = re.compile(r"(`[^`]+`)")
_ESCAPED_BAR = "\\|"


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {_text(report.title)}", _facts(report.facts), "## What the trials say"]
    parts.append("\n".join(_statement(k, one) for k, one in enumerate(report.statements, start=1)))
    if report.left_out:
        parts += ["## What is left out", "\n".join(f"- {_text(line)}" for line in report.left_out)]
    for table in report.tables:
        parts += [f"## {_text(table.title)}", *([_text(table.note)] if table.note else [])]
        parts.append(_table(table))
    return "\n\n".join(parts) + "\n"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in facts)


def _statement(k: int, one: Statement) -> str:
    parts = [f"{k}. **{one.verdict.capitalize()}.** {_text(one.text)}"]
    parts += [_text(one.evidence)] if one.evidence else []
    parts += [f"*{_text(one.advice)}*"] if one.advice else []
    return "\n   ".join(parts)


def _table(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        # a column ends at a bar, even within code
        return f"| {' | '.join(cell.replace('|', _ESCAPED_BAR) for cell in cells)} |"

    lines = [row([*map(_text, table.columns)]), row(["---"] * len(table.columns))]
    for values in table.rows:
        cells = []
        for name, value in zip(table.columns, values, strict=True):
            text = typed_text(value) if name == table.typed else _text(cell_text(value))
            cells.append(_code(text) if name == table.typed and text else text)
        lines.append(row(cells))
    return "\n".join(lines)


def _text(text: str) -> str:
    """Text in which nothing is markup but code between backticks."""
    return "".join(
        part if _CODE.fullmatch(part) else _SPECIAL.sub(r"\\\1", part)
        for part in _CODE.split(visible(" ".join(text.split())))
    )


def _code(text: str) -> str:
    """Code between more backticks than there are together in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if len(fence) > 1 else ""
    return f"{fence}{room}{text}{room}{fence}"
