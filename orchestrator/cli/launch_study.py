"""`launch` after its checks: create or continue a study, run workers on this machine, follow the
study to its end.

Read `launch` from the top. The worker processes are in `local_workers`, the loop that follows the
study in `launch_loop`, the last lines in `conclusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator import config
from orchestrator.cli import controls, preflight, screen
from orchestrator.cli.call import Call
from orchestrator.cli.commands import INTERRUPTED, RETRY
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.extending import launch_or_extend
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import Following
from orchestrator.cli.launch_loop import FollowedStudy, follow
from orchestrator.cli.local_workers import LocalWorkers
from orchestrator.cli.opening import about_code, announcement
from orchestrator.cli.waiting import waiting
from orchestrator.model import StudySpec
from orchestrator.signals import Ending

if TYPE_CHECKING:
    from orchestrator.store import Relaunching, Store, StudyRow


def launch(call: Call, spec: StudySpec, importing: preflight.Importing, ending: Ending) -> int:
    """What `launch.run` does after its checks; returns the exit code."""
    count = preflight.worker_count(call)
    preflight.check_runs_directory(call, count)
    if not importing.over:
        import_module("orchestrator.store.store")  # slow, so beside the objective's import
    importing.finish()
    output = preflight.output_directory(call)

    with _database(call) as (begun, whole):
        store: Relaunching = begun
        preflight.check_checkpoint_places(call, store, spec, count)
        startup = config.startup_label(spec)  # once stored, it is a plain number
        launched = launch_or_extend(call, store, spec)
        row = store.reads.find(spec.name)
        spec = store.reads.spec(row.study_id)  # a study that continues keeps its original form
        view = screen.View(spec, as_json=call.json)
        view.say(announcement(call, spec, launched))
        if launched.created and startup is not None:
            view.say(startup)
        for line in [
            *about_code(store, row, spec, created=launched.created),
            *preflight.remarks(spec),
        ]:
            view.say(line)

        failures, interrupted = Failures(store, row), False
        if _retries(call, whole, row, view) or launched.open_tickets:
            following = Following(call, store, row, view, probes=bool(spec.probes))
            with following.announced(), LocalWorkers(call, spec, count, output, view) as workers:
                # Slow to import, so beside the workers' imports.
                store = following.store = all_of_it = whole()
                begun.rest()
                if count:
                    _announce_devices(call, all_of_it, view)
                workers.announce()
                failures = Failures(store, row)
                followed = FollowedStudy(call, all_of_it, row, spec, view, failures)
                row, interrupted = follow(followed, workers, following)
                ending.requested = interrupted
            spec = store.reads.spec(row.study_id)  # another launch may have extended the study

        conclude(
            call,
            store,
            row,
            spec,
            failures,
            revive=lambda: whole().revive(),
            interrupted=interrupted,
        )
        return INTERRUPTED if interrupted else 0


@contextmanager
def _database(call: Call) -> Iterator[tuple[Relaunching, Callable[[], Store]]]:
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
