"""The facts of an attempt: its code, machine, device and resource use.

They are plain JSON data, gathered by the keeper.

The keeper sends the worker those `for_database`, and writes all of them to `environment.json` in
the run directory, so that they are available when a result is delivered after worker and keeper are
gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from orchestrator.model import JSONValue
from orchestrator.runner.protocol.values import as_json
from orchestrator.runner.system.memory import peak_device_bytes
from orchestrator.runner.system.sources import Sources, is_installed

FILE: Final = "environment.json"
_GIT_S: Final = 1.0
# Set if a git hook runs this program; they refer to the hook's repository.
_GIT_ELSEWHERE: Final = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
# Make the diff independent of the user's git configuration, and run none of their programs.
_DIFF: Final = (
    *(
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--full-index",
        "--no-renames",
        "--unified=3",
        "--diff-algorithm=myers",
    ),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
_VERSION = re.compile(r"[\w.+-]{1,40}", re.ASCII)
_FOLDER = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.dist-info")
_MODULES: Final = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Well-known modules whose package has a different name."""
_ONLY_IN_FILE: Final = ("study", "trial", "attempt", "started_at", "ended_at", "installed")


class Environment:
    """The facts that all attempts of one keeper share.

    Each is looked up when first used, and then kept.

    Args:
        sources: the objective's source files.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._code: tuple[dict[str, JSONValue] | None, dict[str, JSONValue] | None] | None = None

    def forget_code(self) -> None:
        """Makes the next use look at the code again: a program reads its files at each start."""
        if self.__dict__.pop("source", None) is None:
            self._code = None

    def look_at_code(self) -> None:
        """Looks up `source` and `code` now, while the files are those that were just imported."""
        self.__dict__.pop("source", None)
        self._code = None
        _ = self.code

    @cached_property
    def source(self) -> dict[str, JSONValue] | None:
        """The hashes of the objective's source files; None if it has no files of its own."""
        return self._sources.look().facts

    @property
    def code(self) -> dict[str, JSONValue] | None:
        """Repository, commit, and whether tracked files differ from it.

        None outside a repository that git can open.

        The repository is that of the objective's module or script, or of the working directory if
        the objective belongs to an installed package. It is looked up again when `source` has
        changed.
        """
        source = self.source
        if self._code is None or self._code[0] != source:
            self._code = source, self._repository()
        return self._code[1]

    def _repository(self) -> dict[str, JSONValue] | None:
        for directory in _directories(self._sources.file):
            if (commit := _git(directory, "rev-parse", "--show-toplevel", "HEAD")) is not None:
                where, _, sha = commit.strip().partition("\n")
                changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
                dirty = None if changed is None else bool(changed.strip())
                diff = _git(directory, "diff", *_DIFF, "HEAD") if dirty else None
                digest = None if diff is None else hashlib.sha256(diff.encode()).hexdigest()[:12]
                return {"commit": sha, "dirty": dirty, "diff": digest, "directory": where}
        return None

    @cached_property
    def installed(self) -> dict[str, str]:
        """The version of every installed package by name, taken from the names of metadata folders.

        `importlib.metadata` would parse each package's metadata: a tenth of a second for sixty
        packages.
        """
        found: dict[str, str] = {}
        for entry in sys.path:
            with contextlib.suppress(OSError):
                for name in os.listdir(entry or "."):  # noqa: PTH208 - paths are not needed
                    if match := _FOLDER.fullmatch(name):
                        found.setdefault(_normal(match["name"]), match["version"])
        return dict(sorted(found.items()))

    @cached_property
    def machine(self) -> dict[str, JSONValue]:
        """Host, operating system and Python."""
        return {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        }

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The top-level modules that this process, and so every fork of it, has imported."""
        return tuple(imported())

    @cached_property
    def packages(self) -> dict[str, JSONValue]:
        """The versions of the packages of `modules`, and of Optuna, which chose the parameters."""
        return self.packages_of(("optuna", *self.modules))

    def packages_of(self, modules: Iterable[str]) -> dict[str, JSONValue]:
        """The versions of the packages that contain these top-level modules, by name."""
        names = {_normal(_MODULES.get(module, module)) for module in modules}
        return {name: version for name, version in self.installed.items() if name in names}


class AttemptFacts:
    """The facts of one attempt, collected from its start on.

    Args:
        from_worker: those that the worker has: study, trial, attempt, seed, threads, device.
    """

    def __init__(
        self, run_dir: Path, environment: Environment, from_worker: Mapping[str, JSONValue]
    ) -> None:
        self.run_dir = run_dir
        self._environment = environment
        self._facts: dict[str, Any] = {**from_worker, "started_at": _now()}
        self._began = time.monotonic()
        self._cpu_before_s = 0.0

    def begin(self, cpu_before_s: float = 0.0) -> None:
        """Adds the facts that take time to find and writes all.

        Call it once the child runs and nobody waits.

        Args:
            cpu_before_s: processor time that the child's process used before this attempt, seconds.
        """
        self._cpu_before_s = cpu_before_s
        environment = self._environment
        self._facts |= {
            **environment.machine,
            "git": environment.code,
            "source": environment.source,
            "packages": environment.packages,
            "installed": environment.installed,
        }
        self.write()

    def end(self, used: Mapping[str, Any], *, peak_host_bytes: int, cpu_s: float) -> dict[str, Any]:
        """Completes the facts; returns those for the database.

        Args:
            used: what the child reported about itself, see `used_here`; empty if it did not get
                that far.
        """
        modules = used.get("modules")
        if isinstance(modules, list) and modules:
            more = self._environment.packages_of(str(module) for module in modules)
            self._facts["packages"] = dict(sorted({**self._environment.packages, **more}.items()))
        device, cuda = used.get("peak_device_bytes"), used.get("cuda")
        if isinstance(cuda, str) and _VERSION.fullmatch(cuda):
            self._facts["cuda"] = cuda
        self._facts |= {
            "ended_at": _now(),
            "duration_s": round(time.monotonic() - self._began, 3),
            "cpu_s": round(max(0.0, cpu_s - self._cpu_before_s), 3),
            "peak_memory_bytes": peak_host_bytes,
            "peak_device_bytes": device
            if isinstance(device, int) and 0 <= device < 1 << 63
            else None,
        }
        return for_database(self._facts)

    def write(self) -> None:
        """Writes the facts to the run directory, over existing ones.

        A full or missing disk is not an error.

        A partial file, which a full disk or a crash may leave, is read as none.
        """
        # One line per fact, by hand: with `indent`, json uses its Python encoder, twenty times
        # slower.
        lines = ",\n".join(
            f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self._facts.items()
        )
        with contextlib.suppress(OSError):
            # User code may have put a pipe there, or a symbolic link to another file.
            file = os.open(
                self.run_dir / FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
            try:
                os.ftruncate(file, os.write(file, f"{{\n{lines}\n}}\n".encode()))
            finally:
                os.close(file)


def for_database(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an attempt's facts that is stored in its database row.

    What other columns hold, and the list of all installed packages, are left out.
    """
    return {key: value for key, value in facts.items() if key not in _ONLY_IN_FILE}


def read(run_dir: Path) -> dict[str, Any]:
    """The facts for the database of the attempt in `run_dir`.

    Empty if there are none that it can store.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):
        # `as_json` checks them, because user code could have written to the file.
        found = as_json(json.loads((run_dir / FILE).read_text(encoding="utf-8")))
        if isinstance(found, dict):
            return for_database(found)
    return {}


def code_now(objective: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """The facts `git` and `source` that an attempt would have if it started here and now."""
    environment = Environment(Sources(objective))
    return {"git": environment.code, "source": environment.source}


def used_here(last_import: str | None = None) -> dict[str, JSONValue]:
    """What only the child knows at its end: peak device memory, modules, CUDA's version.

    Args:
        last_import: leave out this module and those imported before it, which the keeper reports.
    """
    modules: Mapping[str, Any] = sys.modules
    cuda = getattr(getattr(modules.get("torch"), "version", None), "cuda", None)
    return {
        "peak_device_bytes": peak_device_bytes(),
        "modules": list(imported(last_import)),
        "cuda": cuda,
    }


def imported(after: str | None = None) -> list[str]:
    """The top-level modules that this process has imported, without Python's own.

    With `after`, only those imported after that module.

    In a fork, every name that is read costs a copy of its memory page, and a keeper has thousands.
    """
    # Both expressions copy the names in C, as another thread may be importing.
    names = (
        list(sys.modules)
        if after is None
        else list(itertools.takewhile(after.__ne__, reversed(sys.modules)))
    )
    top_level = {name for name in names if "." not in name}
    return sorted(top_level - sys.stdlib_module_names - {"__main__", "__mp_main__"})


def _directories(file: Path | None) -> list[Path]:
    """Where to look for the repository: the module's folder unless installed, then this one."""
    beside = [file.resolve().parent] if file is not None else []
    return [path for path in [*beside, Path.cwd()] if not is_installed(path)]


def _git(directory: Path, *words: str) -> str | None:
    """What git prints; None if it fails or takes too long.

    It fails without git, without a repository, and for another user's repository (safe.directory).
    """
    # Take no lock that could block the user's own commit, and start no daemon that outlives the
    # call.
    command = ["git", "-C", str(directory), "-c", "core.fsmonitor=false", *words]
    environment = {key: value for key, value in os.environ.items() if key not in _GIT_ELSEWHERE}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command,
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=nothing,
            env=environment,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
