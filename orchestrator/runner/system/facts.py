"""The facts of an attempt: the code, machine and device it ran on, and what it took. Plain JSON
data, gathered by the keeper.

The keeper tells the worker `for_database` of them and writes all to `environment.json` in the run
directory, so that they are there for a result that is delivered after worker and keeper are gone.
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
# Of a hook that runs us: they name another repository.
_GIT_ELSEWHERE: Final = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
# The same text whatever the user's configuration says, and no program of theirs.
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
"""Well-known modules whose package has another name."""
_ONLY_IN_FILE: Final = ("study", "trial", "attempt", "started_at", "ended_at", "installed")


class Environment:
    """What all attempts of one keeper have in common. Nothing is looked up before it is asked for,
    and then once.

    Args:
        sources: the objective's source files.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._code: tuple[dict[str, JSONValue] | None, dict[str, JSONValue] | None] | None = None

    def forget_code(self) -> None:
        """Has the code looked at anew when it is next asked for: a program reads it whenever it
        starts.
        """
        if self.__dict__.pop("source", None) is None:
            self._code = None

    def look_at_code(self) -> None:
        """Makes `source` and `code` what they are now, while the modules just imported are still
        what the files hold.
        """
        self.__dict__.pop("source", None)
        self._code = None
        _ = self.code

    @cached_property
    def source(self) -> dict[str, JSONValue] | None:
        """The hashes of the objective's source files; None where no file of its own is found."""
        return self._sources.look().facts

    @property
    def code(self) -> dict[str, JSONValue] | None:
        """Repository, commit, and whether tracked files differ from it; None outside a repository
        that git opens for us.

        Of the objective's module or script, or of the working directory if that is of an installed
        package. Looked at anew when `source` has changed.
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
                known = None if diff is None else hashlib.sha256(diff.encode()).hexdigest()[:12]
                return {"commit": sha, "dirty": dirty, "diff": known, "directory": where}
        return None

    @cached_property
    def installed(self) -> dict[str, str]:
        """Version by name of every installed package, as the names of their metadata folders say
        it.

        (`importlib.metadata` parses each package's whole metadata for it: a tenth of a second for
        sixty.)
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
        """The top-level modules that this process has imported, and every fork of it therefore."""
        return tuple(imported())

    @cached_property
    def packages(self) -> dict[str, JSONValue]:
        """Version by package of those that have one of `modules`, and of Optuna, which chose the
        parameters.
        """
        return self.packages_of(("optuna", *self.modules))

    def packages_of(self, modules: Iterable[str]) -> dict[str, JSONValue]:
        """Version by package of those that have one of these top-level modules."""
        names = {_normal(_MODULES.get(module, module)) for module in modules}
        return {name: version for name, version in self.installed.items() if name in names}


class AttemptFacts:
    """The facts of one attempt, from its start on.

    Args:
        told: what the worker knows: study, trial, attempt, seed, threads, device.
    """

    def __init__(
        self, run_dir: Path, environment: Environment, told: Mapping[str, JSONValue]
    ) -> None:
        self.run_dir = run_dir
        self._environment = environment
        self._known: dict[str, Any] = {**told, "started_at": _now()}
        self._began = time.monotonic()
        self._cpu_before_s = 0.0

    def begin(self, cpu_before_s: float = 0.0) -> None:
        """Adds what takes time to find out and writes it down; call it when the child runs and
        nobody waits.

        Args:
            cpu_before_s: what the child's process had used before, which is not this attempt's.
        """
        self._cpu_before_s = cpu_before_s
        environment = self._environment
        self._known |= {
            **environment.machine,
            "git": environment.code,
            "source": environment.source,
            "packages": environment.packages,
            "installed": environment.installed,
        }
        self.write()

    def end(self, used: Mapping[str, Any], *, peak_host_bytes: int, cpu_s: float) -> dict[str, Any]:
        """Completes them; returns what the database is to hold.

        Args:
            used: what the child said about itself, see `used_here`; empty if it did not get that
                far.
        """
        modules = used.get("modules")
        if isinstance(modules, list) and modules:
            more = self._environment.packages_of(str(module) for module in modules)
            self._known["packages"] = dict(sorted({**self._environment.packages, **more}.items()))
        device, cuda = used.get("peak_device_bytes"), used.get("cuda")
        if isinstance(cuda, str) and _VERSION.fullmatch(cuda):
            self._known["cuda"] = cuda
        self._known |= {
            "ended_at": _now(),
            "duration_s": round(time.monotonic() - self._began, 3),
            "cpu_s": round(max(0.0, cpu_s - self._cpu_before_s), 3),
            "peak_memory_bytes": peak_host_bytes,
            "peak_device_bytes": device
            if isinstance(device, int) and 0 <= device < 1 << 63
            else None,
        }
        return for_database(self._known)

    def write(self) -> None:
        """Writes them to the run directory, over what is there; a disk that is full or gone
        disturbs nobody.

        Half of them, as a full disk or a crash may leave, count as none.
        """
        # A line for each: `indent` would be the work of Python's own encoder, twenty times as slow.
        lines = ",\n".join(
            f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self._known.items()
        )
        with contextlib.suppress(OSError):
            # Neither a pipe that user code put there nor what a link of its leads to.
            file = os.open(
                self.run_dir / FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
            try:
                os.ftruncate(file, os.write(file, f"{{\n{lines}\n}}\n".encode()))
            finally:
                os.close(file)


def for_database(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an attempt's facts that its row holds: not what other columns say, nor every
    installed package.
    """
    return {key: value for key, value in facts.items() if key not in _ONLY_IN_FILE}


def read(run_dir: Path) -> dict[str, Any]:
    """What the database is to hold of the attempt in `run_dir`; empty if nothing is there that it
    can hold.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):
        # user code could write there
        found = as_json(json.loads((run_dir / FILE).read_text(encoding="utf-8")))
        if isinstance(found, dict):
            return for_database(found)
    return {}


def code_now(objective: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """What the facts of an attempt begun now, here, would say of its code: `git` and `source`."""
    environment = Environment(Sources(objective))
    return {"git": environment.code, "source": environment.source}


def used_here(known: str | None = None) -> dict[str, JSONValue]:
    """What only the child can tell, at its end: the most it took of its device, and what it had
    imported by then.

    Args:
        known: the module imported last of those that the keeper tells of.
    """
    modules: Mapping[str, Any] = sys.modules
    cuda = getattr(getattr(modules.get("torch"), "version", None), "cuda", None)
    return {
        "peak_device_bytes": peak_device_bytes(),
        "modules": list(imported(known)),
        "cuda": cuda,
    }


def imported(after: str | None = None) -> list[str]:
    """The top-level modules that this process has imported, without Python's own; those after the
    module `after` if given.

    In a fork each name looked at costs a copy of the page it lies on, and a keeper has thousands.
    """
    # Without a step in Python under way: another thread may import.
    names = (
        list(sys.modules)
        if after is None
        else list(itertools.takewhile(after.__ne__, reversed(sys.modules)))
    )
    top_level = {name for name in names if "." not in name}
    return sorted(top_level - sys.stdlib_module_names - {"__main__", "__mp_main__"})


def _directories(file: Path | None) -> list[Path]:
    """Where to look for the objective's repository: beside its module, unless that is an installed
    package, then here.
    """
    beside = [file.resolve().parent] if file is not None else []
    return [path for path in [*beside, Path.cwd()] if not is_installed(path)]


def _git(directory: Path, *words: str) -> str | None:
    """What git prints; None if there is no git, no repository, it is somebody else's
    (safe.directory) or it takes too long.
    """
    # No lock that a commit of the user's could meet, and no daemon that would outlive the call.
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
