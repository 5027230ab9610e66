"""Where the programs of commands are looked for, and whether one is there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from orchestrator.errors import ConfigError, denied
from orchestrator.program import FIELD


def search_path() -> str:
    """``PATH`` for the program of a command.

    As in the shell that started the worker; but of a worker called by its path
    (``.venv/bin/orchestrator``), in a shell with no environment activated, its own environment
    comes first, so that ``python`` is the one with the libraries.
    """
    path = os.environ.get("PATH", os.defpath)
    if (
        sys.prefix == sys.base_prefix
        or os.environ.get("VIRTUAL_ENV")
        or os.environ.get("CONDA_PREFIX")
    ):
        return path
    return os.pathsep.join([str(Path(sys.executable).parent), path])


def check_program(name: str | None) -> None:
    """Raises ConfigError when this process could not start the program `name`; None is no program
    and always good.
    """
    if name is None or shutil.which(name, path=search_path()) is not None:
        return
    if "/" not in name:
        raise ConfigError(f"{FIELD}: there is no program {name!r} on the PATH")
    there = os.path.isfile(name)  # noqa: PTH113 - pathlib's raises where the way there may not be gone
    problem = denied(name) or ("cannot be executed (chmod +x?)" if there else "does not exist")
    raise ConfigError(f"{FIELD}: {name!r} {problem}, seen from {Path.cwd()}")
