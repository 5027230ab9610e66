"""`launch`: create or continue a study, run workers on this machine, follow the study to its end.

Read `run` from the top. The checks are in `preflight`, the worker processes in `local_workers`,
the loop that follows the study in `launch_loop`, the last lines in `conclusion`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator import config, search
from orchestrator.cli import controls, preflight, provenance, screen
from orchestrator.cli.call import Call
from orchestrator.cli.commands import RETRY
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import Following
from orchestrator.cli.launch_loop import FollowedStudy, announcement, follow
from orchestrator.cli.local_workers import LocalWorkers
from orchestrator.cli.waiting import waiting
from orchestrator.model import StudySpec, value_label
from orchestrator.program import label
from orchestrator.runner import HYDRA_DIRECTORY, code_now, is_hydra_app
from orchestrator.signals import Ending

if TYPE_CHECKING:
    from orchestrator.store import Store, StudyRow

INTERRUPTED = 130


def run(call: Call) -> int:
    """Returns 0 if the study has a complete trial at the end, 130 if the user interrupted."""
    with Ending(INTERRUPTED) as ending, ExitStack() as stack:
        with waiting("reading the configuration", only_on_terminal=True):
            spec = config.study_spec(call.composed)
            importing = stack.enter_context(preflight.Importing(call, spec))
            distributions = _checked(spec)
        if ending.requested:  # an import has swallowed the `SystemExit`
            return INTERRUPTED
        if "--dry-run" not in call.switches:
            return _launch(call, spec, importing, ending)
        _finish(importing, spec)
        remarks = _remarks(spec)
        if call.json:
            print(
                json.dumps({**screen.plan_data(spec, distributions), "remarks": remarks}, indent=2)
            )
        else:
            print(screen.plan(spec, distributions, remarks))
    return 0


def _launch(call: Call, spec: StudySpec, importing: preflight.Importing, ending: Ending) -> int:
    count = preflight.worker_count(call)
    preflight.check_runs_directory(call, count)
    import_module("orchestrator.store.store")  # slow, so beside the objective's import
    _finish(importing, spec)
    output = preflight.output_directory(call)

    with _database(call) as store:
        preflight.check_checkpoint_places(call, store, spec, count)
        startup = config.startup_label(spec)  # once stored, it is a plain number
        launched = store.studies.launch(spec)
        row = store.reads.find(spec.name)
        spec = store.reads.spec(row.study_id)  # a study that continues keeps its original form
        view = screen.View(spec, as_json=call.json)
        view.say(announcement(call, spec, launched))
        if launched.created and startup is not None:
            view.say(startup)
        for line in [*_about_code(store, row, spec, created=launched.created), *_remarks(spec)]:
            view.say(line)

        failures, interrupted = Failures(store, row), False
        if _retries(call, store, row, view) or launched.open_tickets:
            if count:
                _announce_devices(call, store, view)
            following = Following(call, store, row, view)
            with following.announced(), LocalWorkers(call, spec, count, output, view) as workers:
                followed = FollowedStudy(call, store, row, spec, view, failures)
                row, interrupted = follow(followed, workers, following)
                ending.requested = interrupted

        conclude(call, store, row, spec, failures, interrupted=interrupted)
        return INTERRUPTED if interrupted else 0


def _finish(importing: preflight.Importing, spec: StudySpec) -> None:
    """Returns if the objective imports; see `preflight.Importing`."""
    with waiting(f"importing the objective: {value_label(label(spec.objective))}"):
        importing.finish()


@contextmanager
def _database(call: Call) -> Iterator[Store]:
    """The database, as `Call.store` opens it; says that it waits for it."""
    storage = call.host.storage
    what = "connecting to the database"
    if storage.kind == "embedded":
        what = f"starting the database in {storage.path}"
    with ExitStack() as stack:
        with waiting(what):
            store = stack.enter_context(call.store())
        yield store


def _remarks(spec: StudySpec) -> list[str]:
    """Settings that will not have the effect they were chosen for."""
    idle = config.never_prunes(spec)
    return [] if idle is None else [idle]


def _retries(call: Call, store: Store, row: StudyRow, view: screen.View) -> bool:
    """Whether failed trials run again, as ``retry=failed`` requests."""
    if RETRY not in call.switches:
        return False
    retried = store.interventions.retry(row.study_id, None)
    view.say(controls.retried_text(retried))
    return any(not one.left for one in retried)


def _checked(spec: StudySpec) -> list[tuple[str, str]]:
    """The study's parameters in words.

    A launch runs every check of a dry run, here, before it writes anything.

    Raises:
        ConfigError: a worker could not search the study's space.
    """
    search.Search(spec)
    return search.describe(spec)


def _about_code(store: Store, row: StudyRow, spec: StudySpec, *, created: bool) -> list[str]:
    """Notes on the objective's code: it runs as a Hydra app, or has changed since."""
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


def _announce_devices(call: Call, store: Store, view: screen.View) -> None:
    """Prints what else only the workers' logs say: no GPU was found, or other programs use it."""
    from orchestrator.worker.device_slot import Slots  # slow to import, needed only here

    settings = call.host.worker
    here = Slots(store, settings)
    if here.why_cpu is not None:
        view.say(f"{here.why_cpu}: trials run on the CPU")
    for line in here.in_use():
        view.say(f"{line}; no worker uses it (worker.require_idle={settings.require_idle})")
