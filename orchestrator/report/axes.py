"""Statements about the axes of the grid: which values are better, by how much, where it depends on
another axis, and where the trials cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, StudySpec, count_label
from orchestrator.report.advice import extending, more_trials
from orchestrator.report.compared import Compared
from orchestrator.report.statement import SURE, Statement
from orchestrator.report.words import (
    between,
    capital,
    decimals,
    listed,
    probability,
    rounded,
    setting,
    short,
    up,
    value,
)

if TYPE_CHECKING:
    from orchestrator.search import AxisEffect, Contrast, Interaction, Science
    from orchestrator.store import Progress

_AT_THE_END = 0.9
_MOST_NAMED = 3
"""Of more values than this, only the nearest one is told with its numbers."""


def about_axes(
    spec: StudySpec, science: Science, compared: Compared, progress: Progress
) -> list[Statement]:
    """Of every axis with at least two values among the cells that have estimates."""
    found = []
    for axis in science.axes:
        found += list(_about(spec, science, axis, compared, progress))
    found += _about_interactions(science, compared)
    return found


def trusted(science: Science) -> bool:
    """Whether there are enough trials for the parameters, so that what the model is sure of counts
    as found.
    """
    return science.complete >= science.needed


def _about(
    spec: StudySpec, science: Science, axis: AxisEffect, compared: Compared, progress: Progress
) -> Iterator[Statement]:
    evidence = _evidence(science, axis.contexts, axis.all_contexts, compared)
    if trusted(science) and axis.largest is not None and axis.largest <= science.margin:
        yield Statement(
            "no-difference",
            f"`{axis.path}` makes no difference within {short(up(axis.largest))}",
            "finding",
            {"axis": axis.path, "largest": axis.largest, "margin": science.margin},
            f"{evidence}; {_margin(science)}",
        )
        return
    groups: dict[tuple[str, bool, str], list[Contrast]] = {}
    for contrast in _told(axis):
        sure, small = contrast.probability >= SURE, contrast.largest <= science.margin
        kind = (
            "undecided"
            if not trusted(science) or not (sure or small)
            else "contrast"
            if sure
            else "no-difference"
        )
        flag = sure if kind == "undecided" else small
        groups.setdefault((kind, flag, value(contrast.better)), []).append(contrast)
    for (kind, flag, _), contrasts in groups.items():
        about = _Together(science, axis.path, contrasts, compared)
        if kind == "contrast":
            yield about.beats(small=flag)
        elif kind == "no-difference":
            yield about.alike()
        else:
            yield about.undecided(spec, progress, sure=flag)
    yield from _end(spec, science, axis, progress)


def _told(axis: AxisEffect) -> list[Contrast]:
    """The contrasts of the best value with the others, nearest first."""
    if not axis.contrasts:
        return []
    score: dict[str, int] = {}
    for contrast in axis.contrasts:
        for one, wins in ((contrast.better, 1), (contrast.worse, -1)):
            score[value(one)] = score.get(value(one), 0) + wins
    best = max(score, key=lambda label: score[label])
    mine = [c for c in axis.contrasts if best in (value(c.better), value(c.worse))]
    return sorted(mine, key=lambda c: c.difference)


@dataclass(frozen=True)
class _Together:
    """What is said at once of one value and several that are worse, nearest first."""

    science: Science
    path: str
    contrasts: Sequence[Contrast]
    compared: Compared

    def beats(self, *, small: bool) -> Statement:
        """The one is better than the others."""
        little = "; that is next to nothing" if small else ""
        return Statement(
            "contrast",
            f"{self._one} beats {self._others('', self._by)}{little}",
            "finding",
            self._numbers,
            self._evidence + (f"; {_margin(self.science)}" if small else ""),
        )

    def alike(self) -> Statement:
        """They differ by less than the margin."""
        named = listed([value(c.worse) for c in self.contrasts])
        largest = short(up(max(c.largest for c in self.contrasts)))
        text = (
            f"{self._one} and {named} make no difference within {largest}"
            if len(self.contrasts) == 1
            else f"From {self._one}, {named} differ by no more than {largest}: that is no "
            "difference"
        )
        return Statement(
            "no-difference",
            text,
            "finding",
            self._numbers,
            f"{self._evidence}; {_margin(self.science)}",
        )

    def undecided(self, spec: StudySpec, progress: Progress, *, sure: bool) -> Statement:
        """The trials are not enough to say; `sure`: not in number, the model is certain."""
        first = self.contrasts[0]
        if len(self.contrasts) == 1:
            text = (
                f"{self._one} or {value(first.worse)}: not enough to say. The first is ahead by "
                f"{self._ahead(first)}, {_sure(first)}"
            )
        else:
            others = self._others("of ", self._ahead)
            text = f"`{self.path}`: not enough to say. {value(first.better)} is ahead {others}"
        advice = ""
        if not trusted(self.science):
            text += "; with more trials this would be a finding" if sure else ""
        else:
            more = [c.more for c in self.contrasts if c.more is not None]
            if len(more) == len(self.contrasts):
                most = max(self.contrasts, key=lambda c: c.more or 0)
                text += (
                    f"; about {count_label(most.more or 0, 'more trial')} in each cell would "
                    f"{_shown(self.contrasts)}"
                )
                wanted = (most.more or 0) * len(self.science.cells)
                advice = more_trials(spec, progress, wanted)
            else:
                text += (
                    "; more than 50 further trials in each cell would be needed to decide"
                    f"{'' if not more else ' all'}"
                )
        return Statement("undecided", text, "open", self._numbers, self._evidence, advice)

    @property
    def _one(self) -> str:
        return setting(self.path, self.contrasts[0].better)

    @property
    def _numbers(self) -> dict[str, JSONValue]:
        """Those of the nearest, and of all."""
        return {
            "axis": self.path,
            **asdict(self.contrasts[0]),
            "margin": self.science.margin,
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
        }

    @property
    def _evidence(self) -> str:
        contexts = min(c.contexts for c in self.contrasts)
        return _evidence(self.science, contexts, contexts, self.compared)

    def _others(self, word: str, by: Callable[[Contrast], str]) -> str:
        if len(self.contrasts) <= _MOST_NAMED:
            each = [f"{word}{value(c.worse)} by {by(c)}, {_sure(c)}" for c in self.contrasts]
            return ", and ".join([", ".join(each[:-1]), each[-1]] if len(each) > 1 else each)
        named = listed([value(c.worse) for c in self.contrasts])
        least = min(self.contrasts, key=lambda c: c.probability)
        return f"{word}{named} by {by(self.contrasts[0])} or more, {_sure(least)} or more"

    def _by(self, contrast: Contrast) -> str:
        places = decimals((contrast.high - contrast.low) / 2.0)
        return (
            f"{rounded(contrast.difference, places)} "
            f"({between(contrast.low, contrast.high, places)})"
        )

    def _ahead(self, contrast: Contrast) -> str:
        if contrast.low >= 0.0:
            return self._by(contrast)
        places = decimals((contrast.high - contrast.low) / 2.0)
        return (
            f"{rounded(contrast.difference, places)} (90 %: {rounded(-contrast.low, places)} "
            f"behind to {rounded(contrast.high, places)} ahead)"
        )


def _sure(contrast: Contrast) -> str:
    return f"P {probability(contrast.probability)}"


def _shown(contrasts: Sequence[Contrast]) -> str:
    """What further trials would show of these."""
    if all(contrast.alike for contrast in contrasts):
        return "show that the difference is none"
    if not any(contrast.alike for contrast in contrasts):
        return "show which is better"
    return "decide all"


def _margin(science: Science) -> str:
    return (
        f"a difference below {short(science.margin)} counts as none: that is {science.margin_rule}"
    )


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


def _end(
    spec: StudySpec, science: Science, axis: AxisEffect, progress: Progress
) -> Iterator[Statement]:
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
            f"add a {further} value to `{axis.path}`: "
            f"{extending(spec, progress, '', spec.n_cells // len(declared))}",
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
