"""The page of the training toolkit: its Python runs as it stands, from top to bottom."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_python_of_the_page_runs_and_prints_what_its_comments_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    threads = torch.get_num_threads()
    printed = io.StringIO()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) > 10
    try:
        with contextlib.redirect_stdout(printed):
            for block in blocks:
                line = text.count("\n", 0, block.start(1)) + 1
                code = "\n" * (line - 1) + block[1]  # so that a traceback names the page's line
                exec(compile(code, str(PAGE), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    for said in re.findall(r"^print\(.*\)\n# (.*)$", text, re.MULTILINE):
        assert said in printed.getvalue()
