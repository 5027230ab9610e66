"""What the documentation points at is there: pages, headings, files, and the names in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
POINTER = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py):([A-Za-z_]\w*(?:\.\w+)*)`")
MEMBER = re.compile(r"`([A-Z]\w+\.[a-z_]\w*)`")
FILE = re.compile(r"`((?:orchestrator|tests|conf/experiment|docker|docs|findings)/[\w./-]+\.\w+)")
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """The page without its blocks of code: what stands in them is no link."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


def heading_anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", text_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_in(module: Path) -> set[str]:
    """`function`, `CONSTANT`, `Class` and `Class.member` of a module, without importing it."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AnnAssign) else []
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    add(ast.parse(module.read_text()).body, "")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in heading_anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_and_name_that_a_page_points_at_exists(page: Path) -> None:
    text = text_of(page)
    missing = [path for path in FILE.findall(text) if not (ROOT / path).exists()]
    for path, symbol in POINTER.findall(text):
        module = next((m for m in (ROOT / path, ROOT / "orchestrator" / path) if m.exists()), None)
        if module is None or symbol not in names_in(module):
            missing.append(f"{path}:{symbol}")
    assert missing == []


def test_every_method_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    members, pointers = MEMBER.findall(text), POINTER.findall(text)
    assert len(members) > 5
    assert len(pointers) > 40, "they are written in another form, which the test above overlooks"
    known = set[str]().union(*map(names_in, (ROOT / "orchestrator").rglob("*.py")))
    assert [member for member in members if member not in known] == []
