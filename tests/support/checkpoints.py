"""Beginning attempts with checkpoints in tests, and looking at what they hold."""

from __future__ import annotations

from pathlib import Path

from orchestrator.runner.files import Checkpoints, Kept


def begin(checkpoints: Checkpoints, attempt: int, *, resume: bool = True, number: int = 0) -> Kept:
    return checkpoints.begin("digits-1", number, attempt, resume=resume)


def content(directory: Path) -> dict[str, str]:
    return {
        p.relative_to(directory).as_posix(): p.read_text()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def fill(directory: Path, **files: str) -> None:
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
