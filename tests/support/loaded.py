"""What a process of ours loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

MAIN = """
import sys
from orchestrator.cli import main
sys.exit(main(sys.argv[1:]))
"""
_LOADED = """
import sys
from orchestrator.cli import main
code = main(sys.argv[1:])
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def run(
    code: str, *words: str, cwd: Path = ROOT, url: str | None = None
) -> subprocess.CompletedProcess[str]:
    """What a process does that runs this Python code with these arguments.

    Args:
        url: the database; None where it needs none.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATOR_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    if url is not None:
        environment |= {"ORCHESTRATOR_STORAGE_URL": url}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded(*words: str, cwd: Path = ROOT, url: str | None = None) -> set[str]:
    """The packages that a process has loaded once it has done what the words say; `cwd` and `url`
    as of `run`.
    """
    done = run(_LOADED, *words, cwd=cwd, url=url)
    assert done.returncode == 0, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("loaded:")]
    return set(line.split()[1:])
