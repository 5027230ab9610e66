"""Whether a study's pruner can ever end a trial, judged by the settings before anything runs."""

from __future__ import annotations

from orchestrator.model import StudySpec, count_label
from orchestrator.program import is_program, read


def has_pruner(spec: StudySpec) -> bool:
    """Whether the study names one that prunes."""
    return spec.pruner.name != "none"


def never_prunes(spec: StudySpec) -> str | None:
    """Why the study's pruner can end no trial, and what to change, in one sentence; None if it can,
    or there is none.
    """
    if not has_pruner(spec):
        return None
    name = f"pruner={spec.pruner.name}"
    if len(spec.directions) > 1:
        return (
            f"{name} never acts: nothing is pruned in a study with several objectives; remove it "
            "(pruner=none)"
        )
    most, needed = _most_in_a_cell(spec), int(getattr(spec.pruner, "n_startup_trials", 0))
    if most < 2 and spec.grid:
        return (
            f"{name} never acts: nothing is pruned in a cell without a complete trial, and each "
            "cell has one trial; set a larger budget.trials, or remove it (pruner=none)"
        )
    within = getattr(spec.pruner, "within_cell", False) and bool(spec.grid)
    room, whom = (most, "its cell") if within else (spec.budget.trials, "the study")
    if room <= max(1, needed):
        fewer = (
            f"pruner.n_startup_trials={max(1, (room - 1) // 2)}, "
            if needed > 1 and room > 1
            else ""
        )
        everyone = (
            "pruner.within_cell=false, " if within and spec.budget.trials > max(1, needed) else ""
        )
        be = "is" if needed <= 1 else "are"
        return (
            f"{name} never acts: it compares a trial once {count_label(max(1, needed), 'trial')} "
            f"of {whom} {be} complete, and {whom} has {count_label(room, 'trial')} in all; set "
            f"{fewer}{everyone}or a larger budget.trials"
        )
    if (
        is_program(spec.objective)
        and read(spec.objective).result_of(spec.metrics).regex is not None
    ):
        return (
            f"{name} does not see values found by objective.result.regex; to be judged, the "
            "program must also print JSON lines"
            f' with a step, such as {{"step": 3, "{spec.metrics[0]}": 0.91}}, or remove it '
            "(pruner=none)"
        )
    return None


def nothing_reported(spec: StudySpec, complete: int) -> str:
    """Says in one sentence what to do about an objective that reported nothing in `complete`
    trials.
    """
    how = (
        "print JSON lines with a step"
        if is_program(spec.objective)
        else "call trial.report and trial.should_prune in it"
    )
    return (
        f"pruner={spec.pruner.name} has nothing to judge: {count_label(complete, 'trial')} "
        f"completed and the objective has reported no intermediate value; {how}, or remove the "
        "pruner (pruner=none)"
    )


def _most_in_a_cell(spec: StudySpec) -> int:
    """The most trials that one cell can get while no other cell is closed."""
    if spec.allocation == "uniform":
        return -(-spec.budget.trials // spec.n_cells)
    return spec.budget.trials - (spec.n_cells - 1) * spec.budget.per_cell
