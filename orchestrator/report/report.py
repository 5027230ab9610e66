"""The report of a study: what it says, in words, tables and pictures."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.report import page
from orchestrator.report.about import facts, left_out
from orchestrator.report.markdown import markdown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures import (
    believed,
    curves,
    effects,
    grid,
    parallel,
    pareto,
    progress,
    slices,
    spent,
)
from orchestrator.report.reading import read
from orchestrator.report.statement import Statement
from orchestrator.report.subject import Subject
from orchestrator.report.tables import Table, cell_text, tables, typed_text

if TYPE_CHECKING:
    from orchestrator.store import Reading

MARKDOWN: Final = ".md"
"""A file whose name ends so gets Markdown."""
_CODE: Final = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Report:
    """What a study says, as it stood when it was read; the same data give the same bytes.

    Attributes:
        study: The study's name.
        facts: Names and values: what the study is and how it stands.
        statements: What the trials say, the most important first, each with its numbers, its
            evidence and what to do about it.
        left_out: What the report cannot say, and why; a sentence each.
        pictures: Figures for plotly.
        tables: Cells, the best trials, failures.
    """

    study: str
    facts: Sequence[tuple[str, str]]
    statements: Sequence[Statement]
    left_out: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[Table]

    @property
    def title(self) -> str:
        return f"Report of study {self.study}"

    @cached_property
    def data(self) -> dict[str, Any]:
        """All but the figures, for JSON."""
        return {
            "study": self.study,
            "facts": dict(self.facts),
            "statements": [asdict(one) for one in self.statements],
            "left_out": list(self.left_out),
            "pictures": [
                {"key": one.key, "title": one.title, "caption": one.caption}
                for one in self.pictures
            ],
            **{table.key: list(table.data) for table in self.tables},
        }

    def html(self) -> str:
        """One page that needs no network: two megabytes, and what the pictures hold."""
        return page.document(self.title, "\n".join(_body(self)), pictures=bool(self.pictures))

    def markdown(self) -> str:
        """Statements and tables, without pictures."""
        return markdown(self)

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, or Markdown if its name ends in ``.md``; returns its path.

        Raises:
            OrchestratorError: it cannot be written.
        """
        text = self.markdown() if str(path).endswith(MARKDOWN) else self.html()
        return page.write(path, text)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, so that neither disturbs the other."""
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" style="width:100%;height:800px;border:0" '
            f'title="{html.escape(self.title)}"></iframe>'
        )


def report_of(store: Reading, name: str | None, groups: Collection[str] = ()) -> Report:
    """The report of the study of that name, or of the newest one.

    Args:
        groups: the names of all config groups, for the overrides of the best trials.

    Raises:
        ConfigError: there is no such study.
    """
    return report_on(read(store, name), groups)


def report_on(subject: Subject, groups: Collection[str] = ()) -> Report:
    """The same, of what was read."""
    return Report(
        subject.spec.name,
        facts(subject),
        subject.statements,
        left_out(subject),
        list(_pictures(subject)),
        tables(subject, groups),
    )


def _pictures(subject: Subject) -> Iterator[Picture]:
    for kind in (grid, pareto, effects, believed, progress, curves, slices, parallel, spent):
        yield from kind.pictures(subject)


# ----------------------------------------------------------------------------------------- the page


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{page.text(report.title)}</h1>"
    yield "<dl>"
    for name, value in report.facts:
        yield f"<dt>{page.text(name)}</dt><dd>{page.text(value)}</dd>"
    yield "</dl>"
    yield '<h2>What the trials say</h2>\n<ol class="statements">'
    for one in report.statements:
        yield _statement(one)
    yield "</ol>"
    for line in report.left_out:
        yield f'<p class="dim">{_text(line)}</p>'
    if report.pictures:
        yield '<h2>Pictures</h2>\n<noscript><p class="dim">The pictures need JavaScript; all '
        yield "that is said and all tables are here without it.</p></noscript>"
        yield '<div class="pictures">'
        for picture in report.pictures:
            yield _figure(picture)
        yield "</div>"
    for table in report.tables:
        yield f"<h2>{page.text(table.title)}</h2>"
        if table.note:
            yield f'<p class="dim">{_text(table.note)}</p>'
        yield from _table(table)


def _statement(one: Statement) -> str:
    kind = "note-statement" if one.verdict == "note" else one.verdict
    lines = [
        f'<li class="{kind}"><p><span class="mark">{one.verdict}</span> {_text(one.text)}</p>',
        f'<p class="evidence">{_text(one.evidence)}</p>' if one.evidence else "",
        f'<p class="advice">→ {_text(one.advice)}</p>' if one.advice else "",
        "</li>",
    ]
    return "".join(lines)


def _figure(picture: Picture) -> str:
    wide = ' class="wide"' if picture.wide else ""
    caption = f"<figcaption>{_text(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f"<figure{wide}><h3>{page.text(picture.title)}</h3>{caption}"
        f"{page.plot(picture.key, picture.figure, picture.title)}</figure>"
    )


def _table(table: Table) -> Iterator[str]:
    """Rows; what one types stands in a row of its own below, as wide as the table."""
    columns = [name for name in table.columns if name != table.typed]
    kinds = []
    for k, name in enumerate(columns):
        number = all(isinstance(row[k], int | float | None) for row in table.rows)
        kinds.append(' class="number"' if number else ' class="long"' if name in table.long else "")
    yield '<div class="table"><table>\n<thead><tr>'
    for name, kind in zip(columns, kinds, strict=True):
        yield f"<th{kind}>{_breakable(name)}</th>"
    yield "</tr></thead>"
    if not table.typed:
        yield "<tbody>"
    for row in table.rows:
        cells = "".join(
            f"<td{kind}>{page.text(cell_text(value))}</td>"
            for kind, value in zip(kinds, row, strict=False)
        )
        if not table.typed:
            yield f"<tr>{cells}</tr>"
        elif typed := page.text(typed_text(row[-1])):
            yield f'<tbody class="pair"><tr class="over">{cells}</tr><tr class="under">'
            yield f'<td colspan="{len(columns)}"><code>{typed}</code></td></tr></tbody>'
        else:
            yield f"<tbody><tr>{cells}</tr></tbody>"
    yield "</table></div>" if table.typed else "</tbody></table></div>"


def _breakable(name: str) -> str:
    """A name that may be broken after each part of a dotted path."""
    return page.text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _text(text: str) -> str:
    """Text as HTML, with what is between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", page.text(text, quote=False))
