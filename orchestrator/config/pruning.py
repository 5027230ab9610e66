"""Whether a study's pruner can ever end a trial, judged by the settings before anything runs, and
by what trials report.
"""

from __future__ import annotations

from orchestrator.model import Reported, StudySpec, count_label
from orchestrator.program import is_program, read
from orchestrator.settings import (
    ASHASettings,
    HyperbandSettings,
    MedianSettings,
    WilcoxonSettings,
)


def has_pruner(spec: StudySpec) -> bool:
    """Whether the study names one that prunes."""
    return spec.pruner.name != "none"


def startup_label(spec: StudySpec) -> str | None:
    """What ``pruner.n_startup_trials=auto`` stands for in this study, and why; None where it is not
    `auto`.
    """
    pruner, used = spec.pruner, spec.pruner_in_effect
    if pruner == used or not isinstance(used, MedianSettings):
        return None
    why = "trials of all cells are compared" if spec.n_cells > 1 else "there is one cell"
    if used.within_cell and spec.n_cells > 1:
        why = f"a third of the {count_label(spec.share, 'trial')} of a cell, from 1 to 5"
    return f"pruner.n_startup_trials=auto is {used.n_startup_trials}: {why}"


def never_prunes(spec: StudySpec) -> str | None:
    """Why the study's pruner can end no trial, and what to change, in one sentence; None if it can,
    or there is none.
    """
    if not has_pruner(spec):
        return None
    pruner = spec.pruner_in_effect
    name = f"pruner={pruner.name}"
    if len(spec.directions) > 1:
        return (
            f"{name} never acts: nothing is pruned in a study with several objectives; remove it "
            "(pruner=none)"
        )
    most, needed = _most_in_a_cell(spec), int(getattr(pruner, "n_startup_trials", 0))
    if most < 2 and spec.grid:
        return (
            f"{name} never acts: nothing is pruned in a cell without a complete trial, and each "
            "cell has one trial; set a larger budget.trials, or remove it (pruner=none)"
        )
    within = getattr(pruner, "within_cell", False) and bool(spec.grid)
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
    if isinstance(pruner, WilcoxonSettings) and pruner.p_threshold == 0:
        return (
            f"{name} never acts: pruner.p_threshold=0, and no p-value is below it; set a larger "
            "one, such as pruner.p_threshold=0.1, or remove it (pruner=none)"
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


def nothing_to_judge(spec: StudySpec, reported: Reported) -> str | None:
    """Why the pruner could judge no trial so far by what they reported, and what to change, in one
    sentence; None if it could, if none is complete, or if there is no pruner.
    """
    if not has_pruner(spec) or not reported.complete:
        return None
    if reported.silent:
        return _nothing_reported(spec, reported.complete)
    return None if reported.last is None else _out_of_reach(spec, reported.last, reported.most)


def _nothing_reported(spec: StudySpec, complete: int) -> str:
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


def _out_of_reach(spec: StudySpec, last: int, most: int) -> str | None:
    """Why the pruner cannot act on trials whose last step is `last` and that report `most` values;
    None if it can.
    """
    pruner = spec.pruner
    reach, change = f"step {last}", "remove the pruner (pruner=none)"
    if isinstance(pruner, MedianSettings) and pruner.n_warmup_steps > last:
        needs = f"until step {pruner.n_warmup_steps} (pruner.n_warmup_steps)"
        change = f"set pruner.n_warmup_steps={last // 4}"
    elif isinstance(pruner, WilcoxonSettings) and most < max(2, pruner.n_startup_steps):
        reach = count_label(most, "value")
        needs = f"until {max(2, pruner.n_startup_steps)} values (pruner.n_startup_steps)"
        if most >= 2:
            change = f"set pruner.n_startup_steps={max(2, most // 4)}"
        else:
            change = f"report more often, or {change}"
    elif isinstance(pruner, ASHASettings | HyperbandSettings):
        first, fields, changes = pruner.min_resource, "pruner.min_resource", []
        least = min(pruner.min_resource, max(1, last // 10))
        if least < pruner.min_resource:
            changes.append(f"pruner.min_resource={least}")
        if isinstance(pruner, ASHASettings) and pruner.min_early_stopping_rate:
            first *= pruner.reduction_factor**pruner.min_early_stopping_rate
            fields += " x reduction_factor ** min_early_stopping_rate"
            changes.append("pruner.min_early_stopping_rate=0")
        if first <= last:
            return None
        needs = f"until its first rung, at step {first} ({fields})"
        change = f"set {' and '.join(changes)}" if last else f"report more steps, or {change}"
    else:
        return None
    return (
        f"pruner={pruner.name} could not act so far: it waits {needs}, and trials report up to "
        f"{reach}; {change}"
    )


def _most_in_a_cell(spec: StudySpec) -> int:
    """The most trials that one cell can get while no other cell is closed."""
    if spec.allocation == "uniform":
        return -(-spec.budget.trials // spec.n_cells)
    return spec.budget.trials - (spec.n_cells - 1) * spec.budget.per_cell
