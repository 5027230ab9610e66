"""`launch`: create or continue a study, run this machine's workers, follow the study to its end.
Read `run` from the top.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from omegaconf import OmegaConf

from orchestrator import config, search, signals
from orchestrator.cli import controls, estimates, hints, provenance, screen
from orchestrator.cli.call import RETRY, Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import Following
from orchestrator.cli.server import LAUNCHER_PID
from orchestrator.devices import discover, usable_cores
from orchestrator.errors import (
    ELSEWHERE,
    ConfigError,
    OrchestratorError,
    StoreUnavailableError,
    StudyFailedError,
)
from orchestrator.model import StudySpec, count_label
from orchestrator.runner import HYDRA_DIRECTORY, Runner, check_allowed, code_now, is_hydra_app
from orchestrator.runner.files import Checkpoints
from orchestrator.runner.files.artifacts import checked_place
from orchestrator.signals import Ending
from orchestrator.store import CodeRow, Launched, Progress, Store, StudyRow, TrialRow, is_braked
from orchestrator.worker.device_slot import Slots
from orchestrator.worker.failover import Failover
from orchestrator.worker.maintenance import Maintenance

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate

T = TypeVar("T")

INTERRUPTED = 130
CPU_WORKERS = 2
"""Workers that `launch` starts on a machine without a GPU."""
_FOLLOW_S = 0.5
_SHARE_OF_LOOKING = 0.1  # a study so large that a look takes long is looked at less often
# of workers that end by an error of their own, one after the other, while no trial is spent
_RESTARTS = 5
# before a dead worker is replaced; doubled from one to the next while no trial is spent
_PAUSE_S = (0.2, 10.0)


def run(call: Call) -> int:
    """Returns 0 when the study has a complete trial in the end; 130 when the user interrupted."""
    spec, distributions = _checked(call)
    if "--dry-run" in call.switches:
        plan = {**screen.plan_data(spec, distributions), "remarks": _remarks(spec)}
        print(
            json.dumps(plan, indent=2)
            if call.json
            else screen.plan(spec, distributions, _remarks(spec))
        )
        return 0
    with Ending(INTERRUPTED) as ending:
        return _launch(call, spec, ending)


def _launch(call: Call, spec: StudySpec, ending: Ending) -> int:
    count = _worker_count(call)
    _check_runs_directory(call, count)
    _check_objective(call, spec)
    output = _output_directory(call)
    with call.store() as store:
        _check_places(call, store, spec, count)
        launched = store.studies.launch(spec)
        row = store.reads.find(spec.name)
        spec = store.reads.spec(row.study_id)  # one that goes on keeps the form it has
        view = screen.View(spec, as_json=call.json)
        view.say(_announcement(call, spec, launched))
        for line in [*_about_code(store, row, spec, created=launched.created), *_remarks(spec)]:
            view.say(line)
        failures, interrupted = Failures(store, row), False
        if _retries(call, store, row, view) or launched.open_tickets:
            if count:
                _announce_devices(call, store, view)
            following = Following(call, store, row, view)
            with following.shown(), _Workers(call, spec, count, output, view) as workers:
                row, interrupted = _follow(
                    _Followed(call, store, row, spec, view, failures), workers, following
                )
                ending.asked = interrupted
        return _conclude(call, store, row, spec, failures, interrupted)


def _remarks(spec: StudySpec) -> list[str]:
    """What will not do what it was chosen for."""
    idle = config.never_prunes(spec)
    return [] if idle is None else [idle]


def _retries(call: Call, store: Store, row: StudyRow, view: screen.View) -> bool:
    """Whether failed trials run again, as ``retry=failed`` asks."""
    if RETRY not in call.switches:
        return False
    retried = store.interventions.retry(row.study_id, None)
    view.say(controls.retried_text(retried))
    return any(not one.left for one in retried)


def _checked(call: Call) -> tuple[StudySpec, list[tuple[str, str]]]:
    """The study, and its parameters in words; all that a dry run checks, a launch checks by this
    before it writes anything.

    Raises:
        ConfigError: a rule of the study is broken, or a worker could not search its space.
    """
    spec = config.study_spec(call.composed)
    search.Search(spec)
    return spec, search.describe(spec)


def _announcement(call: Call, spec: StudySpec, launched: Launched) -> str:
    changed = "".join(f"\n  changed {change}" for change in launched.changes)
    if launched.created:
        cells = (
            f"{count_label(spec.n_cells, 'cell')} x {spec.budget.per_cell} guaranteed"
            if spec.grid
            else "no grid"
        )
        return (
            f"study {spec.name}: {count_label(spec.budget.trials, 'trial')}, {cells}, sampler "
            f"{spec.sampler.name}"
        )
    if launched.open_tickets:
        more = f"{launched.added} trials more, " if launched.added > 0 else ""
        return f"study {spec.name} goes on: {more}{launched.open_tickets} to be done{changed}"
    if RETRY in call.switches:
        return f"study {spec.name} goes on{changed}"
    why = (
        f"budget.trials={spec.budget.trials} is spent"
        if launched.reason == "budget spent"
        else launched.reason
    )
    how = f"; {_how_to_retry(call, spec)}" if launched.reason == "every cell is closed" else ""
    return f"study {spec.name} exists; nothing to add: {why}{how}{changed}"


def _how_to_retry(call: Call, spec: StudySpec) -> str:
    retry = hints.command(call, "retry", f"study.name={spec.name}", "trial=failed")
    return (
        f"once what failed is mended, the same command with {RETRY} runs the failed trials again "
        f"(or: {retry})"
    )


def _about_code(store: Store, row: StudyRow, spec: StudySpec, *, created: bool) -> list[str]:
    """What is to be known of the objective's code: that it is treated as Hydra's, or is not what it
    was.
    """
    if not created:
        return provenance.change_since(store.reads.code(row.study_id), code_now(spec.objective))
    if is_hydra_app(spec.objective):
        return [
            (
                f"a Hydra app: each attempt's output directory is {HYDRA_DIRECTORY}/ in its run "
                "directory (objective.hydra)"
            )
        ]
    return []


def _worker_count(call: Call) -> int:
    """How many workers to start; with devices that are not there nothing is.

    Raises:
        DeviceError: `worker.devices` names one that this host does not have.
        ConfigError: several would share one `worker.health_file`.
    """
    settings = call.composed.host.worker
    if settings.count == 0:
        return 0
    gpus = [device for device in discover(settings.devices) if device.kind == "gpu"]
    count = settings.count
    if count is None:
        count = len(gpus) * (settings.slots_per_device or 1) if gpus else CPU_WORKERS
    if count > 1 and settings.health_file is not None:
        raise ConfigError(
            f"worker.health_file={settings.health_file}: is of one worker, and {count} would be "
            "started here;"
            " give it to 'orchestrator worker', or set worker.count=1"
        )
    return count


def _announce_devices(call: Call, store: Store, view: screen.View) -> None:
    """Says what a user would else have to read in the workers' logs: that there is no GPU, or that
    others are on it.
    """
    settings = call.composed.host.worker
    here = Slots(store, settings)
    if here.why_cpu is not None:
        view.say(f"{here.why_cpu}: trials run on the CPU")
    for line in here.in_use():
        view.say(f"{line}; no worker takes it (worker.require_idle={settings.require_idle})")


def _check_runs_directory(call: Call, count: int) -> None:
    paths = call.composed.host.paths
    runs = paths.runs
    if count:
        checked_place(paths.artifacts, paths.data)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=runs):
                pass
        except OSError as error:
            raise ConfigError(
                f"paths.runs={runs}: workers could not write there: {error.strerror}; {ELSEWHERE}"
            ) from error


def _check_objective(call: Call, spec: StudySpec) -> None:
    """Imports the objective in a process of its own, before anything is written."""
    check_allowed(spec.objective, call.composed.host.worker.allow_targets)
    runner = Runner(spec.objective, start=spec.runner.start)
    try:
        runner.check()
    finally:
        runner.close()


def _check_places(call: Call, store: Store, spec: StudySpec, count: int) -> None:
    """Sees to it that a trial finds its checkpoints wherever it goes on.

    Raises:
        ConfigError: workers of several hosts would serve the study and keep checkpoints in
            different places.
    """
    if not spec.runner.resume:
        return
    places = store.reads.checkpoint_places(spec.name)
    if count:
        paths = call.composed.host.paths
        places.setdefault(Checkpoints(paths.checkpoints, paths.runs).identity(), set()).add(
            socket.gethostname()
        )
    hosts = sorted(set().union(*places.values()))
    if len(places) > 1 and len(hosts) > 1:
        raise ConfigError(
            f"paths.checkpoints: the workers on {', '.join(hosts)} keep checkpoints in different "
            "places, so a trial could not"
            " go on elsewhere; set it to a directory or URL that all share, on each of them, or "
            "launch with runner.resume=false"
        )


def _output_directory(call: Call) -> Path:
    """Hydra's run directory of this launch, with the composed config as Hydra leaves it."""
    directory = Path(OmegaConf.select(call.composed.hydra, "run.dir")).absolute()
    try:
        (directory / ".hydra").mkdir(parents=True, exist_ok=True)
        visible = OmegaConf.masked_copy(
            call.composed.config, [str(k) for k in call.composed.config if k != "storage"]
        )
        (directory / ".hydra" / "config.yaml").write_text(
            OmegaConf.to_yaml(visible), encoding="utf-8"
        )
        overrides = [
            o for o in call.composed.overrides if not o.lstrip("+").startswith("storage.url")
        ]
        (directory / ".hydra" / "overrides.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.create(overrides)), encoding="utf-8"
        )
    except OSError as error:
        raise OrchestratorError(f"hydra.run.dir={directory}: {error.strerror}") from error
    return directory


class _Workers:
    """The worker processes of this launch: started, replaced when they die, ended with
    the block.
    """

    def __init__(
        self, call: Call, spec: StudySpec, count: int, output: Path, view: screen.View
    ) -> None:
        self._command = [
            sys.executable,
            "-m",
            "orchestrator",
            "worker",
            *_host_overrides(call, spec, count),
        ]
        self._environment = {
            **os.environ,
            LAUNCHER_PID: str(os.getpid()),
            **_storage_environment(call),
        }
        self._output = output
        self._view = view
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._errors = 0
        self._pause_s = _PAUSE_S[0]
        self._restart_at: dict[int, float] = {}
        self._spent = 0
        self._count = count
        self.ending = False

    def __enter__(self) -> _Workers:
        for k in range(self._count):
            self._start(k)
        if self._count:
            self._view.say(
                f"{count_label(self._count, 'worker')} started; logs: {self._output}/worker-*.log"
            )
        else:
            self._view.say("worker.count=0: following; trials run on the workers there are")
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGTERM)
        for process in self._running.values():
            process.wait()

    def _start(self, k: int) -> None:
        with (self._output / f"worker-{k + 1}.log").open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._running[k] = process

    def signal(self, number: signal.Signals) -> None:
        """Sends `number` to all of them; from then on none is replaced."""
        self.ending = True
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(number)

    def replace_dead(self, spent: int) -> None:
        """Starts another worker for each that died, after a pause that grows while no more trials
        of the study are `spent`.

        Raises:
            OrchestratorError: workers end by an error of their own, again and again; the last lines
                of a log say why.
        """
        if spent != self._spent:
            self._spent, self._errors, self._pause_s = spent, 0, _PAUSE_S[0]
        for k, process in list(self._running.items()):
            # 0: it ended by itself, as worker.max_trials says
            if process.poll() in (None, 0) or self.ending:
                continue
            if k not in self._restart_at:
                self._errors += process.returncode > 0
                if self._errors > _RESTARTS:
                    log = self._output / f"worker-{k + 1}.log"
                    tail = "\n  ".join(
                        log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                    )
                    raise OrchestratorError(
                        f"the workers end as soon as they start; {log} ends with\n  {tail}"
                    )
                self._view.say(
                    f"worker {k + 1} ended with {_ending(process.returncode)}; starting another"
                )
                self._restart_at[k] = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _PAUSE_S[1])
            elif time.monotonic() >= self._restart_at[k]:
                del self._restart_at[k]
                self._start(k)

    @property
    def pids(self) -> set[int]:
        """Of those started last, dead or alive."""
        return {process.pid for process in self._running.values()}

    @property
    def done(self) -> bool:
        """Whether there were workers and all ended by themselves, in order."""
        return bool(self._running) and all(
            process.poll() == 0 for process in self._running.values()
        )

    @property
    def all_gone(self) -> bool:
        """Whether every worker has ended."""
        return all(process.poll() is not None for process in self._running.values())


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _host_overrides(call: Call, spec: StudySpec, count: int) -> list[str]:
    """What the workers are told of this host, as overrides; never the database's URL."""
    host = call.composed.host
    worker = {key: value for key, value in asdict(host.worker).items() if key != "count"}
    worker["health_file"] = (
        None if host.worker.health_file is None else str(host.worker.health_file)
    )
    worker["studies"] = worker["studies"] or [spec.name]
    worker["threads"] = worker["threads"] or max(1, usable_cores() // max(1, count))
    overrides = [f"worker.{key}={config.hydra_word(value)}" for key, value in worker.items()]
    overrides += [
        f"paths.data={config.hydra_word(str(host.paths.data))}",
        f"paths.runs={config.hydra_word(str(host.paths.runs))}",
        f"paths.checkpoints={config.hydra_word(host.paths.checkpoints)}",
        f"paths.artifacts={config.hydra_word(host.paths.artifacts)}",
    ]
    overrides.append(f"storage={host.storage.kind}")
    if host.storage.kind == "embedded":
        overrides.append(f"storage.path={config.hydra_word(str(host.storage.path))}")
    return overrides


def _storage_environment(call: Call) -> dict[str, str]:
    storage = call.composed.host.storage
    if storage.kind == "embedded" or storage.url is None:
        return {}
    environment = {"ORCHESTRATOR_STORAGE_URL": storage.url}
    if storage.password_file:
        environment["ORCHESTRATOR_STORAGE_PASSWORD_FILE"] = storage.password_file
    return environment


@contextmanager
def _interrupts(workers: _Workers, view: screen.View) -> Iterator[list[int]]:
    """Signals that ask to end are passed on to this launch's workers, who know what they mean; the
    list holds those got.
    """
    got: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        got.append(number)
        waited_for = not workers.all_gone
        workers.signal(signal.Signals(number))
        if number == signal.SIGHUP:
            _leave_terminal()
        elif number == signal.SIGINT and len(got) == 1 and waited_for:
            view.say(
                "ending: running trials are finished first; Ctrl-C again gives them back at "
                "once. The study stays."
            )

    before = signals.handle(interrupt)
    try:
        yield got
    finally:
        signals.restore(before)


def _leave_terminal() -> None:
    """Says the rest to nobody if the terminal is gone: writing to it is an error then."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def _follow(followed: _Followed, workers: _Workers, following: Following) -> tuple[StudyRow, bool]:
    """Shows the study until it is finished or paused itself; returns its row, and True when the
    user ended it before.
    """
    store, view = followed.store, followed.view
    maintenance = Maintenance(store, every_s=1.0)
    spent, silent, next_look = 0, False, 0.0
    with _interrupts(workers, view) as got, view:
        while True:
            try:
                following.row = followed.keep_launched()
                maintenance.sweep()
                progress, began = None, time.monotonic()
                if began >= next_look:
                    progress = followed.look()
                    next_look = time.monotonic() + (time.monotonic() - began) / _SHARE_OF_LOOKING
                following.look(progress, own=workers.pids)
                store.rest()
            except StoreUnavailableError as error:
                maintenance.lost_contact()
                if not silent:
                    view.say(f"{error}; trying again")
                silent = True
                store.revive()
            else:
                silent = False
                if progress is not None:
                    view.update(progress)
                    braked = (
                        is_braked(progress.study.state, progress.study.reason)
                        and not progress.running
                    )
                    if progress.study.state == "FINISHED" or braked:
                        return followed.row, False
                    spent = progress.spent
            if workers.all_gone and (got or workers.done):
                return followed.row, bool(got)
            workers.replace_dead(spent)
            time.sleep(_FOLLOW_S)


class _Followed:
    """The study of this launch, as the database has it; `row` is another one if it had to be
    launched once more.
    """

    def __init__(
        self,
        call: Call,
        store: Store,
        row: StudyRow,
        spec: StudySpec,
        view: screen.View,
        failures: Failures,
    ) -> None:
        self.row = row
        self.store = store
        self.view = view
        self._call = call
        self._spec = spec
        self._failures = failures
        self._failover = Failover(store)
        self._unsure = False
        self._judges = config.has_pruner(spec) and not config.never_prunes(spec)
        self._failed = 0
        self._news = 0

    def keep_launched(self) -> StudyRow:
        """The study's row; launches it once more if another server answers than before, which has
        lost it or this launch.
        """
        server = self.store.reads.server()
        self._unsure = self._unsure or self._failover.changed(server)
        self._tell(self._failover.note(server))
        if self._unsure:
            if not any(map(self._is_launched, self.store.reads.studies())):
                launched = self.store.studies.launch(self._spec)
                self.row = self.store.reads.find(self._spec.name)
                self._failures.begin_anew(self.row)
                self.view.say(
                    "the database had lost this launch; "
                    f"{_announcement(self._call, self._spec, launched)}"
                )
            self._unsure = False
        return self.row

    def look(self) -> Progress:
        """Where the study stands; tells of trials that failed since the last time, and of a pruner
        that cannot act.
        """
        maximize = self._spec.directions[0] == "maximize"
        progress = self.store.reads.progress(self.row, maximize=maximize, most=self.view.most_cells)
        if progress.news < self._news:
            self._tell(self._failover.note(self.store.reads.server(), behind=True))
        self._news = progress.news
        if progress.failed != self._failed:
            self._failures.show(self.view)
            self._failed = progress.failed
        if self._judges and progress.best is not None:
            self._judges = False
            if complete := self.store.reads.silently_complete(self.row.study_id):
                self.view.say(config.nothing_reported(self._spec, complete))
        return progress

    def _is_launched(self, found: StudyRow) -> bool:
        same = (found.study_id, found.created_at) == (self.row.study_id, self.row.created_at)
        return same and found.launched_at >= self.row.launched_at

    def _tell(self, why: str | None) -> None:
        if why is not None:
            self.view.say(why)
            self._failures.begin_anew(self.row)  # their numbers may be those of other trials now
            self._failed = 0


def _conclude(
    call: Call, store: Store, row: StudyRow, spec: StudySpec, failures: Failures, interrupted: bool
) -> int:
    """Prints how the study stands: failures, best trial, best of every cell, and how
    to browse it.
    """
    try:
        progress, best, believed, code = _insist(
            store, lambda: _standing(call, store, row, spec, failures), once=interrupted
        )
    except StoreUnavailableError as error:
        print(f"{error}; the study stays", file=sys.stderr)
        return 130
    if call.json:
        data = {**screen.as_data(spec, progress, best, believed), "failures": failures.data}
        print(screen.as_json({**data, "code": provenance.code_data(code)}))
    else:
        for kind in failures.kinds:
            if len(kind.numbers) > kind.said:
                print(kind.line)
        print(screen.results(spec, progress, best, believed))
        if mixed := provenance.changes_within(code):
            print(mixed)
        paths = [o for o in call.composed.overrides if o.startswith("paths.")]
        where = call.composed.host.dashboard.url or hints.command(call, "dashboard", *paths)
        print(f"browse it: {where}")
    if interrupted:
        if progress.study.state == "ACTIVE":
            print(
                hints.staying(call, spec.name, progress.total - progress.spent),
                file=sys.stderr if call.json else sys.stdout,
            )
        return INTERRUPTED
    if is_braked(progress.study.state, progress.study.reason):
        resume = hints.command(call, "resume", f"study.name={spec.name}")
        retry = hints.command(call, "retry", f"study.name={spec.name}", "trial=failed")
        raise StudyFailedError(
            f"study {spec.name} is {progress.study.reason}. Mend it, and launch again (or: "
            f"{resume}); {retry} runs the"
            " failed ones again, with the same parameters"
        )
    if progress.study.state != "FINISHED":
        left = progress.total - progress.spent
        raise OrchestratorError(
            f"study {spec.name} is not finished, {left} trials are left: the workers of this "
            "launch ended by themselves "
            "(worker.max_trials, worker.idle_timeout_s); the same command goes on"
        )
    if not best:
        closed = (
            f"; {_how_to_retry(call, spec)}"
            if progress.study.reason == "every cell is closed"
            else ""
        )
        why = "".join(f"; {kind.line}" for kind in failures.kinds[:1]) or _only_pruned(progress)
        raise StudyFailedError(
            f"no trial of study {spec.name} completed ({progress.study.reason}){why}{closed}"
        )
    return 0


def _standing(
    call: Call, store: Store, row: StudyRow, spec: StudySpec, failures: Failures
) -> tuple[Progress, list[TrialRow], list[CellEstimate | None], list[CodeRow]]:
    most = None if call.json else estimates.MOST_CELLS
    progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=most)
    best = screen.best_trials(spec, store.reads.contenders(row.study_id, spec.directions))
    failures.read()
    return progress, best, estimates.of_cells(store, progress), store.reads.code(row.study_id)


def _insist(store: Store, read: Callable[[], T], *, once: bool = False) -> T:
    """What `read` returns, as soon as the database answers: it may be away just when the study
    ends.

    Raises:
        StoreUnavailableError: it does not, and is to be asked `once`.
    """
    said = False
    while True:
        try:
            return read()
        except StoreUnavailableError as error:
            if once:
                raise
            if not said:
                print(f"{error}; trying again", file=sys.stderr)
                said = True
            store.revive()
        time.sleep(_FOLLOW_S)


def _only_pruned(progress: Progress) -> str:
    pruned = sum(cell.pruned for cell in progress.cells)
    return f"; {screen.pruned_themselves(pruned)}" if pruned else ""
