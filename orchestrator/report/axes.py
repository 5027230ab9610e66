"""Statements about the axes of the grid: which values are better, by how much, where it depends on
another axis, and where the trials cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, StudySpec, count_label, same_value
from orchestrator.report.compared import Compared
from orchestrator.report.statement import Statement
from orchestrator.report.words import (
    between,
    capital,
    decimals,
    listed,
    rounded,
    setting,
    short,
    up,
    value,
)

if TYPE_CHECKING:
    from orchestrator.search import AxisEffect, Contrast, Interaction, Science

SURE = 0.95
"""A value beats another one if it is better with this probability."""
_AT_THE_END = 0.9
_MOST_CONTRASTS = 6


def about_axes(spec: StudySpec, science: Science, compared: Compared) -> list[Statement]:
    """Of every axis with at least two values among the cells that have estimates."""
    found = []
    for axis in science.axes:
        found += list(_about(spec, science, axis, compared))
    found += _about_interactions(science, compared)
    return found


def _about(
    spec: StudySpec, science: Science, axis: AxisEffect, compared: Compared
) -> Iterator[Statement]:
    evidence = _evidence(science, axis.contexts, axis.all_contexts, compared)
    if trusted(science) and axis.largest is not None and axis.largest <= science.margin:
        yield Statement(
            "no-difference",
            f"`{axis.path}` makes no difference within {short(up(axis.largest))}",
            "finding",
            {"axis": axis.path, "largest": axis.largest, "margin": science.margin},
            f"{evidence}; a difference below {short(science.margin)} counts as none: that is "
            f"{science.margin_rule}",
        )
        return
    for contrast in _told(axis):
        yield _contrast(science, axis.path, contrast, compared)
    yield from _end(spec, science, axis)


def _told(axis: AxisEffect) -> list[Contrast]:
    """The contrasts of the best value with the others, nearest first."""
    best = _best(axis)
    mine = [c for c in axis.contrasts if any(same_value(v, best) for v in (c.better, c.worse))]
    return sorted(mine, key=lambda c: c.difference)[:_MOST_CONTRASTS]


def _best(axis: AxisEffect) -> JSONValue:
    if axis.values:
        return max(axis.values, key=lambda v: v.probability_best).value
    wins = [c.better for c in axis.contrasts]
    return max(wins, key=lambda v: sum(same_value(v, other) for other in wins))


def _contrast(science: Science, path: str, contrast: Contrast, compared: Compared) -> Statement:
    numbers: dict[str, JSONValue] = {"axis": path, **asdict(contrast), "margin": science.margin}
    evidence = _evidence(science, contrast.contexts, contrast.contexts, compared)
    one, other = setting(path, contrast.better), value(contrast.worse)
    places = decimals((contrast.high - contrast.low) / 2.0)
    by = rounded(contrast.difference, places)
    margin = (
        f"{evidence}; a difference below {short(science.margin)} counts as none: that is "
        f"{science.margin_rule}"
    )
    small = contrast.largest <= science.margin
    if trusted(science) and contrast.probability >= SURE:
        return Statement(
            "contrast",
            f"{one} beats {other} by {by} ({between(contrast.low, contrast.high, places)}), "
            f"P {probability(contrast.probability)}{'; that is next to nothing' if small else ''}",
            "finding",
            numbers,
            margin if small else evidence,
        )
    if trusted(science) and small:
        return Statement(
            "no-difference",
            f"{one} and {other} make no difference within {short(up(contrast.largest))}",
            "finding",
            numbers,
            margin,
        )
    behind = rounded(max(-contrast.low, 0.0), places)
    return Statement(
        "undecided",
        f"{one} or {other}: not enough to say. {one} is ahead by {by} (90 %: {behind} behind to "
        f"{rounded(contrast.high, places)} ahead), P {probability(contrast.probability)}; "
        f"{_more(science, contrast.more)}",
        "open",
        numbers,
        evidence,
        _budget(science, contrast.more, len(science.cells)),
    )


def probability(p: float) -> str:
    """A probability after ``P``: ``= 0.97``, ``> 0.999``."""
    return "> 0.999" if p > 0.999 else f"= {p:.2f}" if p < 0.995 else f"= {p:.3f}"


def trusted(science: Science) -> bool:
    """Whether there are enough trials for the parameters, so that what the model is sure of counts
    as found.
    """
    return science.complete >= science.needed


def _more(science: Science, more: int | None) -> str:
    if not trusted(science):
        return (
            f"{science.complete} complete trials are too few for {science.parameters} parameters, "
            f"at least {science.needed} are needed"
        )
    if more is None:
        return "more than 50 further trials in each cell would be needed to decide"
    return f"about {count_label(more, 'more trial')} in each cell would decide"


def _budget(science: Science, more: int | None, cells: int) -> str:
    if not trusted(science):
        more = -(-(science.needed - science.complete) // cells)
    if not more:
        return ""
    return f"launch again with `budget.trials` about {more * cells} larger"


def _evidence(science: Science, contexts: int, of: int, compared: Compared) -> str:
    where = (
        f"about {count_label(compared.about, 'cell')} with the best values, all others left out"
        if compared.about
        else f"averaged over {count_label(contexts, 'combination')} of the other axes"
        if contexts > 1
        else "over the cells there are"
    )
    left = f", {of - contexts} left out for want of trials" if of > contexts else ""
    return (
        f"the best values that {count_label(len(science.cells), 'cell')} can reach, as a Gaussian "
        f"process over {science.complete} complete trials believes, {where}"
        f"{'' if compared.about else left}"
    )


def _end(spec: StudySpec, science: Science, axis: AxisEffect) -> Iterator[Statement]:
    """If the best value of an axis of numbers is its first or last one."""
    declared = next(a for a in spec.grid if a.path == axis.path).values
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in declared)
    if not numbers or len(axis.values) < 3 or not trusted(science):
        return
    best = max(axis.values, key=lambda v: v.probability_best)
    ends = {min(declared): ("smallest", "smaller"), max(declared): ("largest", "larger")}
    if best.value in ends and best.probability_best >= _AT_THE_END:
        which, further = ends[best.value]
        yield Statement(
            "edge",
            f"The best {setting(axis.path, best.value)} is the {which} of the grid: a {further} "
            "one may be better still",
            "warning",
            {"axis": axis.path, "value": best.value, "probability_best": best.probability_best},
            f"it is the best of {len(axis.values)} values with P "
            f"{probability(best.probability_best)}",
            f"add a {further} value to `{axis.path}` and launch with `study.extend=true`",
        )


def _about_interactions(science: Science, compared: Compared) -> list[Statement]:
    found, unknown = [], []
    evidence = (
        f"the best values that {count_label(len(science.cells), 'cell')} can reach; all pairs of "
        "values of the two axes considered together"
    )
    for i in science.interactions:
        numbers: dict[str, JSONValue] = {**asdict(i), "margin": science.margin}
        if i.differs and trusted(science):
            found.append(Statement("interaction", _depends(i), "finding", numbers, evidence))
        elif i.largest <= science.margin and trusted(science):
            found.append(
                Statement(
                    "no-difference",
                    f"`{i.path}` and `{i.other_path}` do not interact within "
                    f"{short(up(i.largest))}",
                    "finding",
                    numbers,
                    evidence,
                )
            )
        else:
            unknown.append(i)
    if unknown:
        pairs = [f"`{i.path}` and `{i.other_path}` (up to {short(up(i.largest))})" for i in unknown]
        found.append(
            Statement(
                "interaction",
                f"Not enough to say whether these axes interact: {listed(pairs)}",
                "open",
                {"pairs": [[i.path, i.other_path, i.largest] for i in unknown]},
                evidence,
            )
        )
    return found


def _depends(i: Interaction) -> str:
    places = decimals((i.high - i.low) / 2.0)
    here, there = rounded(i.here, places), rounded(abs(i.there), places)
    where, elsewhere = setting(i.other_path, i.other), setting(i.other_path, i.otherwise)
    then = (
        (f"worse by {there}" if i.there < 0.0 else f"better by {there} only")
        if there != "0"
        else "no better"
    )
    return capital(
        f"{setting(i.path, i.better)} is better than {value(i.worse)} by {here} with {where}, and "
        f"{then} with {elsewhere}: these differ by {rounded(i.difference, places)} "
        f"({between(max(i.low, 0.0), i.high, places)})"
    )
