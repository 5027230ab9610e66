"""The first lines of a launch: what it did to the study, and what is to be known of its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.cli import hints, provenance
from orchestrator.cli.call import Call
from orchestrator.cli.commands import RETRY
from orchestrator.model import StudySpec, count_label
from orchestrator.runner import HYDRA_DIRECTORY, code_now, is_hydra_app

if TYPE_CHECKING:
    from orchestrator.store import Launched, Reading, StudyRow


def announcement(call: Call, store: Reading, spec: StudySpec, launched: Launched) -> str:
    """What the launch did to the study: created it, continued it, or found nothing to add."""
    changed = "".join(f"\n  changed {change}" for change in launched.changes)
    if launched.created:
        trials, cells = count_label(spec.budget.trials, "trial"), "no grid"
        if spec.grid:
            cells = f"{count_label(spec.n_cells, 'cell')} x {spec.budget.per_cell} guaranteed"
        return f"study {spec.name}: {trials}, {cells}, sampler {spec.sampler.name}"

    if launched.open_tickets:
        more = f"{count_label(launched.added, 'trial')} added, " if launched.added > 0 else ""
        below = below_spent(store, spec, launched)
        left = f"{launched.open_tickets} left to run{f'; {below}' if below else ''}"
        return f"study {spec.name} continues: {more}{left}{changed}"
    if RETRY in call.switches:
        return f"study {spec.name} continues{changed}"

    spent = launched.reason == "budget spent"
    why = launched.reason
    if spent:
        why = below_spent(store, spec, launched) or f"budget.trials={spec.budget.trials} is spent"
        if launched.changes:
            return (
                f"study {spec.name} is changed; no trial is left to run under it: {why}; raise "
                f"budget.trials{changed}"
            )
    closed = launched.reason == "every cell is closed"
    how = f"; {hints.how_to_retry(call, spec.name)}" if closed else ""
    return f"study {spec.name} exists; nothing to add: {why}{how}{changed}"


def below_spent(store: Reading, spec: StudySpec, launched: Launched) -> str | None:
    """Says that the launch has set a budget of fewer trials than there have been; None if not."""
    if not any(change.startswith("budget.trials: ") for change in launched.changes):
        return None
    row = store.reads.find(spec.name)
    spent = store.reads.progress(row, maximize=False, most=0).spent
    if spent <= spec.budget.trials:
        return None
    return (
        f"{count_label(spent, 'trial')} are spent already, and budget.trials={spec.budget.trials}"
    )


def about_code(store: Reading, row: StudyRow, spec: StudySpec, *, created: bool) -> list[str]:
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
