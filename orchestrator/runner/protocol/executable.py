"""Finds the programs of commands."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from orchestrator.errors import ConfigError, denied
from orchestrator.program import FIELD


def search_path() -> str:
    """The ``PATH`` for the program of a command.

    It is that of the worker's shell. If the worker was called by its path
    (``.venv/bin/orchestrator``) without an activated environment, the worker's own environment
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
    """Returns if this process could start the program `name`.

    None stands for no program and always passes.

    Raises:
        ConfigError: it could not.
    """
    if name is None or shutil.which(name, path=search_path()) is not None:
        return
    if "/" not in name:
        raise ConfigError(f"{FIELD}: there is no program {name!r} on the PATH")
    exists = os.path.isfile(name)  # noqa: PTH113 - pathlib raises if a directory cannot be searched
    problem = denied(name) or ("cannot be executed (chmod +x?)" if exists else "does not exist")
    raise ConfigError(f"{FIELD}: {name!r} {problem} (working directory {Path.cwd()})")
