"""A launch that has nothing to add to its study: it shows how the study stands.

No trial will run, so neither the objective nor this host's devices are looked at, and SQLAlchemy is
not needed.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import preflight, screen
from orchestrator.cli.call import Call
from orchestrator.cli.commands import RETRY
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.failures import Failures
from orchestrator.cli.opening import about_code, announcement
from orchestrator.cli.waiting import waiting
from orchestrator.errors import OrchestratorError
from orchestrator.model import StudySpec
from orchestrator.revision import continued
from orchestrator.runner import check_allowed
from orchestrator.store import is_ended_early

if TYPE_CHECKING:
    from orchestrator.store import Relaunching


def concluded(call: Call, spec: StudySpec) -> bool:
    """Launches the study and shows how it stands, if its budget is spent and nothing has changed;
    False otherwise, for `launch.run` to go on.

    Raises:
        ConfigError: `worker.allow_targets` does not allow the objective, or a file of the user's
            hides a package.
        StudyFailedError: no trial completed.
    """
    if RETRY in call.switches:
        return False
    with ExitStack() as stack:
        try:
            with waiting("connecting to the database"):
                opened = stack.enter_context(call.relaunching())
                if opened is None or not _spent(opened[0], spec):
                    return False
        except OrchestratorError:  # told later, after what comes before it
            return False
        store, whole = opened
        preflight.check_shadows(Path.cwd())
        check_allowed(spec.objective, call.host.worker.allow_targets)
        preflight.output_directory(call)
        launched = store.studies.launch(spec)
        if launched.open_tickets:  # somebody has added trials in the meantime
            return False
        row = store.reads.find(spec.name)
        spec = store.reads.spec(row.study_id)
        view = screen.View(spec, as_json=call.json)
        view.say(announcement(call, store, spec, launched))
        for line in [
            *about_code(store, row, spec, created=launched.created),
            *preflight.remarks(spec),
        ]:
            view.say(line)
        failures = Failures(store, row)
        conclude(
            call, store, row, spec, failures, revive=lambda: whole().revive(), interrupted=False
        )
    return True


def _spent(store: Relaunching, spec: StudySpec) -> bool:
    """Whether the study is there as `spec` has it, and all that its budget allows has ended."""
    row = next((row for row in store.reads.studies() if row.name == spec.name), None)
    if row is None:
        return False
    early = is_ended_early(row.state, row.reason)
    if not early and (row.state, row.reason) != ("FINISHED", "budget spent"):
        return False
    old = store.reads.spec(row.study_id)
    return continued(spec, old).is_same(old)
