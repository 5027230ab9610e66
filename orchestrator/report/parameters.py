"""Statements about the searched parameters: which matter, whose range is too narrow, and whether
the metric depends on them at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, Searched, StudySpec, count_label
from orchestrator.report.advice import extending
from orchestrator.report.axes import trusted
from orchestrator.report.compared import Compared
from orchestrator.report.statement import Statement
from orchestrator.report.words import cell as named_cell
from orchestrator.report.words import listed

if TYPE_CHECKING:
    from orchestrator.search import Edge, Importance, Science, Share
    from orchestrator.store import Progress

UNPREDICTABLE = 0.1
"""Below this cross-validated R², parameters say nothing of the metric."""
_NEGLIGIBLE, _IMPORTANT = 0.05, 0.1
"""Shares of the variance below the one hardly matter, those above the other do."""
_MOST_NAMED = 4


def about_parameters(spec: StudySpec, science: Science) -> Iterator[Statement]:
    """Which searched parameters matter, of a study that has any, or a grid."""
    r2 = science.predictability
    if r2 < UNPREDICTABLE:
        yield Statement(
            "unpredictable",
            f"`{spec.metrics[0]}` is not predictable from the parameters (cross-validated R² "
            f"{max(r2, 0.0):.2f}): noise, or a parameter that is missing",
            "warning",
            {"r2": r2, "trials": science.complete},
            f"each of {science.complete} complete trials predicted from others by the Gaussian "
            "process, which has not seen it",
            "measure more precisely (a larger validation set, several seeds a trial), or search "
            "what else may matter",
        )
    elif science.importances:
        yield from _importance(spec, science)


def about_edges(
    spec: StudySpec, science: Science, compared: Compared, progress: Progress
) -> Iterator[Statement]:
    """Whose range is too narrow, of a study whose metric is predictable."""
    if trusted(science) and science.predictability >= UNPREDICTABLE:
        for edge in science.edges:
            yield _edge(spec, edge, compared, progress)


def _importance(spec: StudySpec, science: Science) -> Iterator[Statement]:
    evidence = (
        "total shares of the variance of the model's mean, drawn uniformly over the whole declared "
        "space, not from the trials as sampled; what lies far beyond the median of the space is "
        f"pressed together. Cross-validated R² {science.predictability:.2f}"
    )
    numbers = {i.path: asdict(i.overall) for i in science.importances}
    known = trusted(science) and science.predictability_low > UNPREDICTABLE
    matter = [i for i in science.importances if known and i.overall.low > _IMPORTANT]
    if matter:
        named = [f"`{i.path}` {_share(i.overall)}" for i in matter]
        yield Statement(
            "importance",
            f"What matters most over the searched space: {listed(named, most=_MOST_NAMED)} of the "
            "variance",
            "finding",
            {i.path: numbers[i.path] for i in matter},
            evidence,
        )
    idle = [i for i in science.importances if known and i.overall.high < _NEGLIGIBLE]
    if idle:
        each = " each" if len(idle) > 1 else ""
        yield Statement(
            "importance",
            f"{listed([f'`{i.path}`' for i in idle])} hardly matter{'' if each else 's'}: "
            f"{_at_most(max(i.overall.high for i in idle))} of the variance{each}",
            "finding",
            {i.path: numbers[i.path] for i in idle},
            evidence,
            _fixing(spec, idle),
        )
    unsure = [i for i in science.importances if i not in matter and i not in idle]
    if unsure:
        yield _unsure(science, unsure, numbers, evidence)


def _at_most(share: float) -> str:
    return "less than 0.01" if share < 0.005 else f"at most {share:.2f}"


def _fixing(spec: StudySpec, idle: list[Importance]) -> str:
    """How the next study leaves them out; nothing for names that only the objective asks for."""
    named = [f"`search.{i.path}=null`" for i in idle if spec.declares(i.path)]
    if not named:
        return ""
    return f"{listed(named)} in the next study leaves {'it' if len(named) == 1 else 'them'} out"


def _unsure(
    science: Science,
    unsure: list[Importance],
    numbers: dict[str, dict[str, float]],
    evidence: str,
) -> Statement:
    if trusted(science):
        vague = science.predictability_low <= UNPREDICTABLE
        why = "; the parameters do not clearly predict the metric" if vague else ""
        text = (
            f"Not enough to say whether {listed([f'`{i.path}`' for i in unsure])} "
            f"{'matters' if len(unsure) == 1 else 'matter'}: up to "
            f"{max(i.overall.high for i in unsure):.2f} of the variance{why}"
        )
    else:
        shares = [f"`{i.path}` {_share(i.overall)}" for i in unsure]
        text = (
            "Not enough to say what matters. So far the model expects "
            f"{listed(shares, most=_MOST_NAMED - 1)} of the variance"
        )
    return Statement(
        "importance", text, "open", {i.path: numbers[i.path] for i in unsure}, evidence
    )


def _share(share: Share) -> str:
    return f"{share.share:.2f} (90 %: {share.low:.2f} to {share.high:.2f})"


def _edge(spec: StudySpec, edge: Edge, compared: Compared, progress: Progress) -> Statement:
    numbers: dict[str, JSONValue] = {
        "parameter": edge.path,
        "side": edge.side,
        "limit": edge.limit,
        "widened": edge.widened,
        "cells": [dict(compared.cells[place]) for place in edge.places],
        "of": edge.of,
    }
    where = (
        ""
        if edge.of == 1
        else f" in {len(edge.places)} of {count_label(edge.of, 'cell')}"
        + (
            f" ({listed([named_cell(compared.cells[p]) for p in edge.places], most=2)})"
            if len(edge.places) < edge.of
            else ""
        )
    )
    widen = (
        "widen it only if values beyond make sense"
        if edge.widened is None
        else f"widen it to {_number(edge.widened)}"
    )
    return Statement(
        "edge",
        f"The best `{edge.path}` lies at the {edge.side} edge of its range, "
        f"{_number(edge.limit)},{where}: {widen}".replace(",:", ":"),
        "note" if edge.widened is None else "warning",
        numbers,
        "the model's best value lies in the outer twentieth of the range, or is its last one, and "
        "is better than further in with a probability of 0.9",
        _advice(spec, edge, progress),
    )


def _advice(spec: StudySpec, edge: Edge, progress: Progress) -> str:
    """What to write on the command line; nothing where the parameter is not declared so simply."""
    item = next((s for s in spec.search if s.path == edge.path), None)
    if edge.widened is None or item is None or item.when or not _is_interval(item):
        return ""
    low, high = (edge.widened, item.high) if edge.side == "lower" else (item.low, edge.widened)
    text = f"interval({_number(low or 0)}, {_number(high or 0)})"
    if item.log:
        text = f"tag(log, {text})"
    if item.kind == "int":
        text = f"int({text})"
    return extending(spec, progress, f"'{edge.path}={text}'", spec.n_cells)


def _is_interval(item: Searched) -> bool:
    return item.kind in ("float", "int") and item.step in (None, 1)


def _number(value: float) -> str:
    """As one writes it: ``3e-1`` is 0.3, ``1e-05`` is 1e-5."""
    text = f"{value:.6g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text
