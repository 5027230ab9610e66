"""`launch` after its checks: create or continue a study, run workers on this machine, follow the
study to its end.

Read `launch` from the top. The worker processes are in `local_workers`, the loop that follows the
study in `launch_loop`, the last lines in `conclusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import config
from orchestrator.cli import controls, preflight, screen, warm_start
from orchestrator.cli.call import Call
from orchestrator.cli.commands import INTERRUPTED, RETRY
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.extending import launch_or_extend
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import Following
from orchestrator.cli.launch_loop import FollowedStudy, follow
from orchestrator.cli.local_workers import LocalWorkers
from orchestrator.cli.opening import about_code, announcement
from orchestrator.cli.serve import notifying
from orchestrator.cli.waiting import waiting
from orchestrator.model import StudySpec
from orchestrator.signals import Ending

if TYPE_CHECKING:
    from orchestrator.store import Launched, Relaunching, Store, StudyRow


def launch(call: Call, spec: StudySpec, importing: preflight.Importing, ending: Ending) -> int:
    """What `launch.run` does after its checks; returns the exit code."""
    count, output = prepared(call, [importing])
    with database(call) as (begun, whole):
        preflight.check_checkpoint_places(call, begun, spec, count)
        startup = config.startup_label(spec)  # once stored, it is a plain number
        taken = warm_start.taken(begun, spec)
        launched = launch_or_extend(call, begun, spec, taken)
        way = Way(begun, whole, count, output, ending)
        return followed(
            call,
            way,
            spec.name,
            launched,
            launch_again=taken.launcher(spec),
            startup=startup,
            taken=taken,
        )


@dataclass(frozen=True)
class Way:
    """How this launch reaches its database, at first and then as a whole, and what it has on this
    host.
    """

    begun: Relaunching
    whole: Callable[[], Store]
    workers: int
    output: Path
    ending: Ending


def prepared(call: Call, importing: Sequence[preflight.Importing]) -> tuple[int, Path]:
    """How many workers to start, and the directory of this launch; returns once the objective is
    known to import.

    Raises:
        OrchestratorError: this host cannot run the study, or what it runs does not import.
    """
    notifying(call)  # what is wrong with a webhook is said before anything is written
    count = preflight.worker_count(call)
    preflight.check_runs_directory(call, count)
    if not all(one.over for one in importing):
        import_module("orchestrator.store.store")  # slow, so beside the objective's import
    for one in importing:
        one.finish()
    return count, preflight.output_directory(call)


def followed(
    call: Call,
    way: Way,
    name: str,
    launched: Launched,
    *,
    launch_again: Callable[[Store], Launched] | None = None,
    startup: str | None = None,
    taken: warm_start.Taken = warm_start.NOTHING,
    give: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Runs workers for the study that was just launched, follows it to its end, and prints how it
    stands; returns the exit code.

    Args:
        launch_again: called if the database should have lost the study; None: it is launched as it
            was.
        startup: what to say of a pruner that is not stored yet.
        taken: what the launch took from other studies.
        give: as of `conclude`.

    Raises:
        OrchestratorError: as `conclude`.
    """
    store: Relaunching = way.begun
    row = store.reads.find(name)
    spec = store.reads.spec(row.study_id)  # a study that continues keeps its original form
    view = screen.View(spec, as_json=call.json)
    view.say(announcement(call, store, spec, launched))
    if launched.created and startup is not None:
        view.say(startup)
    if spec.stop_when.on:
        view.say(config.stop_label(spec.stop_when))
    for line in [
        *taken.lines(spec, created=launched.created),
        *about_code(store, row, spec, created=launched.created),
        *preflight.remarks(spec),
    ]:
        view.say(line)

    failures, interrupted = Failures(store, row), False
    if _retries(call, way.whole, row, view) or launched.open_tickets:
        following = Following(call, store, row, view, probes=bool(spec.probes))
        workers = LocalWorkers(call, spec, way.workers, way.output, view)
        with following.announced(), workers:
            # Slow to import, so beside the workers' imports.
            store = following.store = all_of_it = way.whole()
            way.begun.rest()
            if way.workers:
                _announce_devices(call, all_of_it, view)
            workers.announce()
            failures = Failures(store, row)
            study = FollowedStudy(call, all_of_it, row, spec, view, failures, launch_again)
            telling = notifying(call)
            notifier = None if telling is None else telling(all_of_it, [spec.name])
            row, interrupted = follow(study, workers, following, notifier)
            way.ending.requested = interrupted
            if notifier is not None:
                notifier.close()

    conclude(
        call,
        store,
        row,
        spec,
        failures,
        revive=lambda: way.whole().revive(),
        interrupted=interrupted,
        give=give,
    )
    return INTERRUPTED if interrupted else 0


@contextmanager
def database(call: Call) -> Iterator[tuple[Relaunching, Callable[[], Store]]]:
    """The database for what comes before the workers, and what makes all else possible in it; says
    that it waits for it.
    """
    storage = call.host.storage
    what = "connecting to the database"
    if storage.kind == "embedded":
        what = f"starting the database in {storage.path}"
    with ExitStack() as stack:
        with waiting(what):
            opened = stack.enter_context(call.relaunching())
            if opened is None:
                store = stack.enter_context(call.store())
                opened = store, lambda: store
        yield opened


def _retries(call: Call, whole: Callable[[], Store], row: StudyRow, view: screen.View) -> bool:
    """Whether failed trials run again, as ``retry=failed`` requests."""
    if RETRY not in call.switches:
        return False
    retried = whole().interventions.retry(row.study_id, None)
    view.say(controls.retried_text(retried))
    return any(not one.left for one in retried)


def _announce_devices(call: Call, store: Store, view: screen.View) -> None:
    """Prints what else only the workers' logs say: no GPU was found, or other programs use it."""
    from orchestrator.worker.device_slot import Slots  # slow to import, needed only here

    settings = call.host.worker
    here = Slots(store, settings)
    if here.why_cpu is not None:
        view.say(f"{here.why_cpu}: trials run on the CPU")
    for line in here.in_use():
        view.say(f"{line}; no worker uses it (worker.require_idle={settings.require_idle})")
