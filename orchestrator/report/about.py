"""What a study is, in a few lines, and what its report cannot say."""

from __future__ import annotations

from itertools import pairwise

from orchestrator import search
from orchestrator.errors import ConfigError
from orchestrator.model import MOST_BELIEVED, MOST_CELLS, count_label, value_label
from orchestrator.program import label
from orchestrator.report.pictures.scales import of_time
from orchestrator.report.subject import Subject, moment

_MOST_VALUES = 12


def facts(subject: Subject) -> list[tuple[str, str]]:
    """Names and values: goal, grid, search, budget, state, time."""
    spec = subject.spec
    goal = ", ".join(
        f"{direction} {metric}"
        for direction, metric in zip(spec.directions, spec.metrics, strict=True)
    )
    lines = [("goal", goal)]
    if not subject.plain:
        lines.append(("objective", value_label(label(spec.objective))))
    lines += _stage(subject)
    for axis in spec.grid:
        some = ", ".join(map(value_label, axis.values[:_MOST_VALUES]))
        more = len(axis.values) - _MOST_VALUES
        lines.append(
            (
                f"grid: {value_label(axis.path)}",
                f"{some}{f' and {more:,} more' if more > 0 else ''}",
            )
        )
    for path, words in _searched(subject):
        lines.append((f"search: {value_label(path)}", words))
    if subject.plain:
        lines.append(("made by", "plain Optuna: no grid, no promised trials, no attempts"))
    else:
        cells = count_label(spec.n_cells, "cell")
        promise = f"{spec.budget.per_cell} promised to each of {cells}" if spec.grid else "one cell"
        hours = f", no trial starts after {spec.budget.hours:g} h" if spec.budget.hours else ""
        lines += [
            ("budget", f"{count_label(spec.budget.trials, 'trial')}, {promise}{hours}"),
            (
                "method",
                f"sampler {spec.sampler.name}, allocation {spec.allocation}, pruner "
                f"{spec.pruner.name}, seed {spec.seed}",
            ),
        ]
    lines.append(("state", _state(subject)))
    if subject.device_seconds:
        unit, size = of_time(subject.device_seconds)
        lines.append(("device time", f"{subject.device_seconds / size:.3g} {unit}"))
    if subject.spans:
        begun = min(span.started_at for span in subject.spans)
        ended = subject.ended
        until = f" to {moment(ended)}" if ended else ""
        lines.append(("trials ran", f"{moment(begun)}{until} UTC"))
    return lines


def left_out(subject: Subject) -> list[str]:
    """What the report cannot say of this study, and why; a sentence each."""
    spec = subject.spec
    lines = []
    if not spec.grid and not subject.plain:
        lines.append("The study has no grid, so there are no cells to compare.")
    elif spec.grid and spec.n_cells == 1:
        lines.append("The grid has one cell, so there are no cells to compare.")
    elif spec.n_cells > MOST_CELLS:
        lines.append(
            f"The grid has {spec.n_cells:,} cells. With more than {MOST_CELLS} the model "
            f"estimates only the {len(subject.compared.cells):,} that are compared, and only the "
            f"{len(subject.cells):,} best ones are looked at one by one."
        )
    for axis in spec.grid:
        if count := subject.compared.left_out.get(axis.path):
            lines.append(
                f"Of the {len(axis.values):,} values of {value_label(axis.path)} {count:,} "
                f"{'is' if count == 1 else 'are'} not compared; those of the best cells are."
            )
    if len(subject.news) > MOST_BELIEVED:
        lines.append(f"With more than {MOST_BELIEVED:,} trials, no model is fitted.")
    if subject.sliced is not None and subject.sliced.why_not:
        lines.append(subject.sliced.why_not)
    if subject.foreign:
        are = "was" if subject.foreign == 1 else "were"
        lines.append(
            f"{count_label(subject.foreign, 'trial')} that others added to the study {are} not "
            "counted."
        )
    if subject.plain:
        lines.append(
            "Plain Optuna made this study: it has no cells, no attempts and no devices, and failed "
            "trials have no message."
        )
    return lines


def _stage(subject: Subject) -> list[tuple[str, str]]:
    """Of a stage, its place in the chain, the stages before it, and what it inherited."""
    chain, study_id = subject.chain, subject.progress.study.study_id
    stage = next((s for s in chain.begun if s.study_id == study_id), None) if chain else None
    if chain is None or stage is None:
        return []
    place = f"{stage.ordinal + 1} of {len(chain.stages)} of {chain.name}: {stage.name}"
    lines = [("stage", value_label(place))]
    for before, after in pairwise(s for s in chain.begun if s.ordinal <= stage.ordinal):
        best = f"best trial {after.inherited.trial} of {before.study}"
        lines.append((f"stage {before.name}", value_label(best)))
    if inherited := stage.inherited.lines():
        lines.append(("inherited", value_label("; ".join(inherited))))
    return lines


def _searched(subject: Subject) -> list[tuple[str, str]]:
    try:
        described = search.describe(subject.spec)
    except ConfigError:
        described = []
    axes = {axis.path for axis in subject.spec.grid}
    lines = [(path, text.removeprefix("search: ")) for path, text in described if path not in axes]
    declared = axes | {path for path, _ in lines}
    names = dict.fromkeys(name for trial in subject.trials for name in trial.params)
    asked = "varied from trial to trial" if subject.plain else "asked for by the objective"
    return [*lines, *((name, asked) for name in names if name not in declared)]


def _state(subject: Subject) -> str:
    progress = subject.progress
    counts = {"complete": 0, "pruned": 0, "failed": 0}
    for trial in subject.trials:
        word = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state)
        if word:
            counts[word] += 1
    words = [f"{count:,} {word}" for word, count in counts.items() if count]
    words += [f"{progress.running:,} running"] if progress.running else []
    words += [f"{progress.waiting:,} waiting"] if progress.waiting else []
    trials = ", ".join(words) or "no trial yet"
    if subject.plain:
        return trials
    reason = f" ({progress.study.reason})" if progress.study.reason else ""
    spent = f"{progress.spent:,} of {progress.total:,} spent"
    return f"{progress.study.state.lower()}{reason}; {spent}: {trials}"
