"""The checks of a launch on this host, before anything is written to the database."""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator import config
from orchestrator.cli.call import Call
from orchestrator.cli.waiting import waiting
from orchestrator.errors import ELSEWHERE, ConfigError, OrchestratorError, denied
from orchestrator.measurement import as_objective, functions_of
from orchestrator.model import StudySpec, value_label
from orchestrator.program import label
from orchestrator.runner import Import, check_allowed, check_probe_allowed

if TYPE_CHECKING:
    from orchestrator.store import Reading

_IMPORTED_LATER: Final = (
    "alembic",
    "colorsys",
    "difflib",
    "getpass",
    "glob",
    "hydra",
    "mimetypes",
    "numpy",
    "omegaconf",
    "optuna",
    "psutil",
    "psycopg2",
    "resource",
    "rich",
    "scipy",
    "sqlalchemy",
    "sysconfig",
    "termios",
    "torch",
    "typing_extensions",
    "yaml",
)
"""Modules that workers or objectives import, although this process may not have done so yet."""
CPU_WORKERS: Final = 2
"""Workers that `launch` starts on a machine without a GPU."""


def worker_count(call: Call) -> int:
    """How many workers to start.

    Raises:
        DeviceError: `worker.devices` names a device that this host does not have.
        ConfigError: several workers would share one `worker.health_file`.
    """
    from orchestrator.devices import discover  # slow to import, and not needed for a dry run

    settings = call.host.worker
    if settings.count == 0:
        return 0
    gpus = [device for device in discover(settings.devices) if device.kind == "gpu"]
    count = settings.count
    if count is None:
        count = len(gpus) * (settings.slots_per_device or 1) if gpus else CPU_WORKERS
    if count > 1 and settings.health_file is not None:
        raise ConfigError(
            f"worker.health_file={settings.health_file}: belongs to one worker, but {count} would "
            "be started here; give it to 'orchestrator worker', or set worker.count=1"
        )
    return count


def check_runs_directory(call: Call, count: int) -> None:
    """Returns if the workers of this host can write run directories and artifacts.

    Raises:
        ConfigError: they cannot.
    """
    if not count:
        return
    import tempfile

    from orchestrator.runner.files.artifacts import checked_place

    paths = call.host.paths
    runs = paths.runs
    checked_place(paths.artifacts, paths.data)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):
            pass
    except OSError as error:
        raise ConfigError(
            f"paths.runs={runs}: workers could not write there: {error.strerror}; {ELSEWHERE}"
        ) from error


class Importing:
    """The import of the objective and of what its probes call, in a process of its own that is gone
    when the block ends.

    It begins with the block, so that it takes no extra time beside slow imports of this process's.
    What is wrong is only told by `finish`, so that it does not depend on what is faster.
    """

    def __init__(self, call: Call, spec: StudySpec) -> None:
        self._objective = spec.objective
        self._allowed = call.host.worker.allow_targets
        self._start = spec.runner.start
        self._import: Import | None = None
        self._probes = spec.probes
        self._called: list[tuple[str, str]] = []  # the probes' functions: their probes and keys

    def __enter__(self) -> Importing:
        with suppress(ConfigError):
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._import is not None:
            self._import.close()

    @property
    def over(self) -> bool:
        """Whether `finish` would return, or raise, at once."""
        return self._import is None or self._import.over

    def finish(self) -> None:
        """Returns if the objective and what its probes call import.

        Raises:
            ConfigError: one does not, or cannot be called with what it is given;
                `worker.allow_targets` does not allow it; or a file of the user's hides a package.
        """
        with waiting(f"importing the objective: {value_label(label(self._objective))}"):
            process = self._begin()
            try:
                process.check()
            except ConfigError as error:
                if not process.imported:
                    raise
                name, key = self._called[process.imported - 1]
                # Only where the message begins: a module of the user's may be called so.
                field = f"probes.{name}.{key}"
                text = re.sub(r"\Aobjective\._target_", field, str(error))
                text = re.sub(r"\Aobjective\.", f"probes.{name}.", text)
                raise ConfigError(text.replace("the objective", f"the probe {name}")) from error
            process.close()

    def _begin(self) -> Import:
        check_shadows(Path.cwd())
        check_allowed(self._objective, self._allowed)
        for name, probe in self._probes.items():
            check_probe_allowed(name, probe, self._allowed)
        if self._import is None:
            also = {}
            for name, probe in self._probes.items():
                function, *build = functions_of(probe)
                also[name, "_target_"] = {**as_objective(probe), "_target_": function}
                also |= {(name, "build"): {"_target_": build[0]}} if build else {}
            self._called = list(also)
            self._import = Import(self._objective, start=self._start, also=also.values())
        return self._import


def check_shadows(directory: Path) -> None:
    """Returns if nothing in the working directory hides a module that workers import.

    Workers and objectives look for modules there first: an ``optuna.py`` of the user's would be
    imported in place of Optuna.

    Raises:
        ConfigError: something does.
    """
    if denied(directory) is not None:
        return  # Python finds nothing there; the objective's import tells, if it needs that
    here = directory.resolve()
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    try:
        there = set(os.listdir(directory))  # noqa: PTH208 - names are enough
    except OSError:
        return
    loaded = {name.partition(".")[0] for name in sys.modules}
    for name in sorted({*loaded, *_IMPORTED_LATER} - {"__main__"}):
        if not there & {name, f"{name}.py"}:
            continue
        mine = [directory / f"{name}.py", directory / name / "__init__.py"]
        found = next((path for path in mine if denied(path.parent) is None and path.exists()), None)
        if found is None:
            continue
        other = PathFinder.find_spec(name, elsewhere)
        if other is None or other.origin is None or Path(other.origin).resolve() == found.resolve():
            continue
        # In a clone of this repository, what hides the installed program is the program itself.
        if name == "orchestrator" and _same(Path(other.origin), found):
            continue
        raise ConfigError(
            f"{found.relative_to(directory)} in the working directory {directory} hides the "
            f"installed module {name!r}, which workers need; rename it"
        )


def _same(one: Path, other: Path) -> bool:
    """Whether two files have the same content."""
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def remarks(spec: StudySpec) -> list[str]:
    """Settings that will not have the effect they were chosen for."""
    idle = (config.never_prunes(spec), config.stops_nothing(spec))
    return [remark for remark in idle if remark is not None]


def check_checkpoint_places(call: Call, store: Reading, spec: StudySpec, count: int) -> None:
    """Returns if a trial finds its checkpoints on whichever host it continues.

    Raises:
        ConfigError: workers on several hosts would serve the study but keep checkpoints in
            different places.
    """
    if not spec.runner.resume:
        return
    places = store.reads.checkpoint_places(spec.name)
    if count:
        from orchestrator.runner.files import Checkpoints

        paths = call.host.paths
        here = Checkpoints(paths.checkpoints, paths.runs).identity()
        places.setdefault(here, set()).add(socket.gethostname())
    hosts = sorted(set().union(*places.values()))
    if len(places) > 1 and len(hosts) > 1:
        raise ConfigError(
            f"paths.checkpoints: the workers on {', '.join(hosts)} keep checkpoints in different "
            "places, so a trial could not continue on another host; on each host, set it to a "
            "directory or URL that all of them share, or launch with runner.resume=false"
        )


def output_directory(call: Call) -> Path:
    """Hydra's run directory of this launch, with the composed config in it, as Hydra writes it. One
    that is called after the time is this launch's alone: another of the same second has ``…-2``.

    The storage settings are left out: their URL may hold a password.

    Raises:
        OrchestratorError: it cannot be written.
    """
    from omegaconf import OmegaConf

    composed = call.composed
    directory = Path(OmegaConf.select(composed.hydra, "run.dir")).absolute()
    visible = [str(key) for key in composed.config if key != "storage"]
    overrides = [o for o in composed.overrides if not o.lstrip("+").startswith("storage.url")]
    files = {
        "config.yaml": OmegaConf.masked_copy(composed.config, visible),
        "overrides.yaml": OmegaConf.create(overrides),
    }
    written: Any = OmegaConf.to_container(composed.hydra.run, resolve=False)
    try:
        if "${now:" in written["dir"]:
            directory = _new_directory(directory)
        (directory / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / ".hydra" / name).write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    except OSError as error:
        raise OrchestratorError(f"hydra.run.dir={directory}: {error.strerror}") from error
    return directory


def _new_directory(wanted: Path) -> Path:
    """Makes a directory that was not there, of this name or with the first free number after it."""
    directory, number = wanted, 1
    while True:
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            number += 1
            directory = wanted.with_name(f"{wanted.name}-{number}")
        else:
            return directory
