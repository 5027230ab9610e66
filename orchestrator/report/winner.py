"""Statements about the best trials: which one leads, what is tied with it, and how often it ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.model import MOST_BELIEVED, JSONValue, StudySpec, count_label
from orchestrator.report.advice import confirming
from orchestrator.report.statement import SURE, Statement
from orchestrator.report.words import between, decimals, listed, probability, rounded, settings
from orchestrator.report.words import cell as named_cell

if TYPE_CHECKING:
    from orchestrator.search import Leader, Leaders
    from orchestrator.store import Progress, TrialRow

FEWEST = 10
"""With fewer complete trials there is no model."""
_SEEDS = 5
"""What is advised: so many seeds tell a standard deviation to about a third."""


def complete(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that count: complete, with values, feasible."""
    return [t for t in trials if t.state == "COMPLETE" and t.values and t.feasible]


def about_the_best(
    spec: StudySpec, leaders: Leaders | None, trials: Sequence[TrialRow], progress: Progress
) -> list[Statement]:
    """Of a study with one objective, at least one trial of which is complete."""
    done = complete(trials)
    if leaders is None:
        return [_observed(spec, done), *_once(spec, _first(spec, done), done, None)]
    by_number = {trial.number: trial for trial in done}
    winner = by_number.get(leaders.best.trials[0])
    if winner is None:  # a trial that ended after the model was made, or one of plain Optuna
        return []
    if leaders.noise is None:
        return [_exact(spec, leaders.best, winner, len(done))]
    return [
        _believed(spec, leaders, winner, len(done), progress),
        *_once(spec, winner, done, leaders),
    ]


def _first(spec: StudySpec, done: Sequence[TrialRow]) -> TrialRow:
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    return min(done, key=lambda t: (sign * (t.values or (0.0,))[0], t.number))


def _observed(spec: StudySpec, done: Sequence[TrialRow]) -> Statement:
    best = _first(spec, done)
    value = (best.values or (0.0,))[0]
    why = (
        f"with more than {MOST_BELIEVED:,} trials no model says which is the best"
        if len(done) > MOST_BELIEVED
        else "with fewer than ten complete trials no model tells luck from merit"
        if len(done) < FEWEST
        else "there is no model that tells luck from merit"
    )
    return Statement(
        "best",
        f"Trial {best.number} has the best `{spec.metrics[0]}`, {value:.6g}, of "
        f"{count_label(len(done), 'complete trial')}: {_params(spec, best)}",
        "note",
        {"trial": best.number, "value": value, "trials": len(done)},
        f"what was observed; {why}",
    )


def _exact(spec: StudySpec, best: Leader, winner: TrialRow, n: int) -> Statement:
    """Without noise, what was observed is so."""
    value = (winner.values or (0.0,))[0]
    return Statement(
        "best",
        f"Trial {winner.number} is the best of those tried, `{spec.metrics[0]}` {value:.6g}, with "
        f"{_params(spec, winner)}",
        "finding",
        _numbers(best, winner, n),
        f"{n} complete trials; the model sees no noise in them",
    )


def _believed(
    spec: StudySpec, leaders: Leaders, winner: TrialRow, n: int, progress: Progress
) -> Statement:
    best, tied = leaders.best, [leader.trials[0] for leader in leaders.tied]
    places = decimals((best.high - best.low) / 2.0)
    sure = best.probability_best >= SURE
    if tied and not sure:
        others = f"{'trial' if len(tied) == 1 else 'trials'} {listed(list(map(str, tied)))}"
        text = f"Trial {winner.number} is the best bet, tied with {others}"
    else:
        text = (
            f"Trial {winner.number} is {'' if sure else 'probably '}the best of those tried, "
            f"P {probability(best.probability_best)}"
        )
    evidence = f"the mean of a Gaussian process over {n} complete trials, not the luckiest value"
    if tied:
        evidence += (
            f". Trial {winner.number} is the best of all with P "
            f"{probability(best.probability_best)}; tied is what is as good or better than it with "
            "a probability of at least 0.1"
        )
    return Statement(
        "best",
        f"{text}: expected `{spec.metrics[0]}` {rounded(best.mean, places)} "
        f"({between(best.low, best.high, places)}), with {_params(spec, winner)}",
        "finding" if sure else "open",
        {
            **_numbers(best, winner, n),
            "tied": list(tied),
            "probability_better": [leader.probability_better for leader in leaders.tied],
        },
        evidence,
        confirming(spec, progress, max(2 * (len(tied[:5]) + 1), _SEEDS)) if tied else "",
    )


def _numbers(best: Leader, winner: TrialRow, n: int) -> dict[str, JSONValue]:
    return {
        "trial": winner.number,
        "value": (winner.values or (0.0,))[0],
        "expected": best.mean,
        "low": best.low,
        "high": best.high,
        "probability_best": best.probability_best,
        "trials": n,
    }


def _once(
    spec: StudySpec, winner: TrialRow, done: Sequence[TrialRow], leaders: Leaders | None
) -> list[Statement]:
    runs = sum(t.params == winner.params for t in done)
    if runs > 1:
        return []
    noise = leaders.noise if leaders is not None else None
    known = (
        ""
        if noise is None
        else f"; over the whole study the noise is about {noise.std:.2g} (90 %: {noise.low:.2g} to "
        f"{noise.high:.2g})"
    )
    return [
        Statement(
            "seeds",
            f"Trial {winner.number} was run once: its own spread over seeds is unknown{known}",
            "warning",
            {
                "trial": winner.number,
                "runs": runs,
                "noise": None if noise is None else noise.std,
            },
            "one complete trial has these parameters",
            f"`orchestrator rerun study.name={spec.name} trial={winner.number} seeds={_SEEDS}`",
        )
    ]


def _params(spec: StudySpec, trial: TrialRow) -> str:
    return settings(trial.params) if trial.params else "no parameters"


def about_the_front(spec: StudySpec, trials: Sequence[TrialRow]) -> list[Statement]:
    """Of a study with several objectives: the Pareto front and its cells."""
    done = complete(trials)
    front = pareto(spec, done)
    axes = [axis.path for axis in spec.grid]
    cells: dict[str, tuple[dict[str, JSONValue], list[int]]] = {}
    for trial in front:
        values = {path: trial.params[path] for path in axes if path in trial.params}
        cells.setdefault(named_cell(values), (values, []))[1].append(trial.number)
    metrics = listed([f"`{metric}`" for metric in spec.metrics])
    best = []
    for place, (metric, direction) in enumerate(zip(spec.metrics, spec.directions, strict=True)):
        sign = -1.0 if direction == "maximize" else 1.0
        first = min(front, key=lambda t: (sign * (t.values or ())[place], t.number))
        best.append(f"`{metric}` {(first.values or ())[place]:.6g} in trial {first.number}")
    where = listed([f"{name} ({len(numbers)})" for name, (_, numbers) in cells.items()])
    found = [
        Statement(
            "front",
            f"{count_label(len(front), 'trial')} of {len(done)} "
            f"{'is' if len(front) == 1 else 'are'} on the Pareto front of {metrics}; at its ends: "
            f"{listed(best)}",
            "finding",
            {"front": [t.number for t in front], "trials": len(done)},
            "observed values of the complete trials; noise may put a lucky one there",
        )
    ]
    if spec.grid:
        found.append(
            Statement(
                "front",
                f"The front has trials of {count_label(len(cells), 'cell')} of "
                f"{spec.n_cells}: {where}",
                "finding",
                {
                    "cells": [
                        {"values": values, "trials": numbers} for values, numbers in cells.values()
                    ]
                },
                "the cells of the trials on the Pareto front",
            )
        )
    found.append(
        Statement(
            "cannot-say",
            f"With {len(spec.metrics)} objectives there is no single best: no contrasts of the "
            "axes, no importances and no estimates of the cells are given",
            "note",
            {"objectives": len(spec.metrics)},
            "the model of the cells knows one objective",
        )
    )
    return found


def pareto(spec: StudySpec, done: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that no other beats in every objective at once, by number."""
    signs = [-1.0 if d == "maximize" else 1.0 for d in spec.directions]
    losses = [tuple(s * v for s, v in zip(signs, t.values or (), strict=True)) for t in done]
    # by the first objective, whoever dominates a trial comes before it
    front: list[int] = []
    for place in sorted(range(len(done)), key=lambda i: losses[i]):
        mine = losses[place]
        if not any(
            losses[other] != mine and all(a <= b for a, b in zip(losses[other], mine, strict=True))
            for other in front
        ):
            front.append(place)
    return [done[place] for place in sorted(front)]
