"""What the model believes along a parameter, after few trials of a cell and now, and below it the
improvement that it expects of the next trial.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from orchestrator.model import JSONValue, StudySpec, count_label, same_value
from orchestrator.report.palette import BLUE, GREEN, shown, shown_apart
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.marks import (
    axis,
    drawn,
    explained,
    limits,
    names,
    places,
    selector,
    trials_at,
)
from orchestrator.search import CellSlices, Line, Slices, Snapshot

_BAND: Final = "rgba(47, 129, 199, 0.22)"  # BLUE
_GAIN: Final = "rgba(42, 157, 106, 0.35)"  # GREEN
_MARGIN: Final = {"t": 40, "b": 96}
_ROW_PX: Final = 250
_TITLE_PX: Final = 40
_LEGEND_PX: Final = 56
_UPPER_PX: Final = (190, 200)
"""In a row, where the title ends; where the predictions end and the improvement begins."""
_USES: Final = {
    "gp": ", which the sampler maximises over all parameters at once",
    "tpe": ", by which the sampler picks one of the likely points",
}
_NOWHERE: Final = [0.9999, 1.0]
"""Of axes that a panel does not use: their background would cover something anywhere else."""
_FEW: Final = 3
"""With fewer trials in the study, what is drawn is almost only the prior."""
_WIDER: Final = 4.0
"""How much wider than the last row's own range that of all rows may be."""
_FAINT: Final = 0.4
_ASIDE: Final = 0.13
"""How far a category's prediction and trials stand to the left and right of it."""


def pictures(spec: StudySpec, slices: Slices, *, plain: bool = False) -> list[Picture]:
    """A picture for each parameter shown, with a choice of cells in which it exists.

    Args:
        plain: plain Optuna made the study, with a sampler that is not known.
    """
    numbers = itertools.count(1)
    found: list[Picture] = []
    for path in slices.paths:
        lines = [(cell, line) for cell in slices.cells for line in cell.lines if line.path == path]
        choices = _choices(lines)
        panels = [_Panel(spec, cell, line, choices) for cell, line in lines]
        numeric = lines[0][1].numeric
        found.append(
            Picture(
                f"surrogate-{next(numbers)}" if numeric else "surrogate-choices",
                f"What the model believes along {path}",
                _caption(
                    spec,
                    slices,
                    panels,
                    uses="" if plain else _USES.get(spec.sampler.name, ""),
                    explained_above=bool(found),
                ),
                _figure(spec, panels),
            )
        )
    return found


def _choices(lines: Sequence[tuple[CellSlices, Line]]) -> list[JSONValue]:
    """The values of a category: those that a new trial may get, then others that were tried; none
    of a number.
    """
    _, first = lines[0]
    if first.numeric:
        return []
    found = list(first.at)
    for cell, line in lines:
        for value in (t.params[line.path] for t in cell.trials if line.path in t.params):
            if not any(same_value(value, known) for known in found):
                found.append(value)
    return found


def _caption(
    spec: StudySpec, slices: Slices, panels: Sequence[_Panel], *, uses: str, explained_above: bool
) -> str:
    scales = "The rows' scales differ." if any(panel.differ for panel in panels) else ""
    if explained_above:
        return scales
    held = ""
    if any(len(panel.cell.held) > 1 for panel in panels):
        held = (
            "The other parameters are held as in the trial believed to be the cell's best; "
            "fainter trials tell less of this slice."
        )
    sentences = [
        f"The {spec.metrics[0]} expected without noise, with 90 % of the belief, after the first "
        f"trials{' of a cell' if spec.grid else ''} and now.",
        f"Below it the expected improvement by the same belief{uses}.",
        held,
        scales,
        explained(trial for panel in panels for trial in panel.cell.trials),
        _which(slices),
    ]
    return " ".join(filter(None, sentences))


def _which(slices: Slices) -> str:
    if not slices.left_out:
        return ""
    return (
        f"Only the {len(slices.cells)} cells that are the likeliest to be the best; "
        f"{count_label(slices.left_out, 'other')} left out."
    )


@dataclass(frozen=True)
class _Panel:
    """One cell's snapshots along one parameter, each a row of two axes.

    `choices` are the values of a category in the order in which they stand on the axis.
    """

    spec: StudySpec
    cell: CellSlices
    line: Line
    choices: Sequence[JSONValue]

    @property
    def height(self) -> int:
        return _MARGIN["t"] + _MARGIN["b"] + _ROW_PX * len(self.line.snapshots)

    @cached_property
    def ranges(self) -> list[list[float]]:
        """Of each row's predictions: the same for all, unless the last could not be read then."""
        each = [self._range(shot) for shot in self.line.snapshots]
        wide = [min(low for low, _ in each), max(high for _, high in each)]
        last = each[-1]
        if wide[1] - wide[0] <= _WIDER * (last[1] - last[0]):
            return [wide] * len(each)
        return each

    @property
    def differ(self) -> bool:
        """Whether rows have different ranges."""
        return self.ranges[0] != self.ranges[-1]

    def _range(self, shot: Snapshot) -> list[float]:
        best = (max if self.maximize else min)(range(len(shot.mean)), key=shot.mean.__getitem__)
        return limits(
            [
                trial.value
                for trial in self.cell.trials[: shot.seen]
                if trial.value is not None and trial.ended != "pruned"
            ],
            [*shot.mean, *shot.low, *shot.high],
            maximize=self.maximize,
            inside=[shot.mean[best], (shot.low if self.maximize else shot.high)[best]],
        )

    @property
    def maximize(self) -> bool:
        return self.spec.directions[0] == "maximize"

    def traces(self, *, visible: bool) -> Iterator[dict[str, Any]]:
        """Those of each snapshot, the first ones with entries in the legend."""
        for row, shot in enumerate(self.line.snapshots):
            for trace in (
                *self._belief(shot, self.ranges[row]),
                self._trials(shot, self.ranges[row]),
                *self._improvement(shot),
            ):
                lower = trace.pop("lower", False)
                place = 2 * row + (2 if lower else 1)
                yield {
                    "showlegend": row == 0,
                    **trace,
                    "yaxis": "y" if place == 1 else f"y{place}",
                    "visible": visible,
                }

    def _at(self, aside: float = 0.0) -> list[Any]:
        if not self.line.numeric:
            return [place + aside for place in range(len(self.line.at))]
        return [float(f"{x:.5g}") for x in self.line.at]

    def _belief(self, shot: Snapshot, within: list[float]) -> Iterator[dict[str, Any]]:
        low, high = within
        decimals = places(high - low)
        mean = drawn(shot.mean, decimals)
        # beyond the axis nothing is seen, and equal numbers take no room
        ends = [
            drawn((min(max(v, low), high) for v in some), decimals)
            for some in (shot.low, shot.high)
        ]
        name = {"name": "expected", "hovertemplate": "%{y}<extra></extra>"}
        if not self.line.numeric:
            off = {
                key: drawn((abs(end - m) for end, m in zip(some, mean, strict=True)), decimals)
                for key, some in (("array", ends[1]), ("arrayminus", ends[0]))
            }
            yield {
                **name,
                "type": "scatter",
                "mode": "markers",
                "x": self._at(-_ASIDE),
                "y": mean,
                "marker": {"color": BLUE, "size": 10, "symbol": "line-ew-open"},
                "error_y": {"type": "data", "symmetric": False, "color": BLUE, **off},
            }
            return
        x = self._at()
        edge = {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        yield {**edge, "y": ends[0], "showlegend": False}
        yield {
            **edge,
            "y": ends[1],
            "fill": "tonexty",
            "fillcolor": _BAND,
            "name": "90 % of belief",
        }
        yield {
            **name,
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": mean,
            "line": {"color": BLUE},
        }

    def _trials(self, shot: Snapshot, within: list[float]) -> dict[str, Any]:
        known = list(zip(self.cell.trials, self.line.near, strict=True))[: shot.seen]
        known = [(trial, near) for trial, near in known if self.line.path in trial.params]
        low, high = within
        worst = low if self.maximize else high
        y = [worst if t.value is None else min(max(t.value, low), high) for t, _ in known]
        return trials_at(
            [trial for trial, _ in known],
            [self._place(trial.params[self.line.path]) for trial, _ in known],
            drawn(y, places(high - low) + 1),
            [
                round(_FAINT + (1.0 - _FAINT) * (near if t.ended == "complete" else 0.5), 2)
                for t, near in known
            ],
        )

    def _place(self, value: JSONValue) -> float:
        if self.line.numeric:
            return float(f"{value:.5g}")
        return next(i for i, v in enumerate(self.choices) if same_value(v, value)) + _ASIDE

    def _improvement(self, shot: Snapshot) -> Iterator[dict[str, Any]]:
        most = max(shot.improvement)
        gain, x = drawn(shot.improvement, places(most)), self._at()
        common = {
            "lower": True,
            "name": "expected improvement",
            "x": x,
            "y": gain,
            "hovertemplate": "%{y}<extra></extra>",
        }
        if not self.line.numeric:
            yield {**common, "type": "bar", "width": 0.3, "marker": {"color": GREEN}}
            return
        yield {
            **common,
            "type": "scatter",
            "mode": "lines",
            "line": {"color": GREEN, "width": 1},
            "fill": "tozeroy",
            "fillcolor": _GAIN,
        }
        if most > 0:
            best = shot.improvement.index(most)
            yield {
                "lower": True,
                "type": "scatter",
                "mode": "markers",
                "x": [x[best]],
                "y": [gain[best]],
                "marker": {"symbol": "triangle-down", "size": 9, "color": GREEN},
                "cliponaxis": False,
                "hoverinfo": "skip",
                "showlegend": False,
            }

    def layout(self, rows: int) -> dict[str, Any]:
        """What changes with the panel, by plotly's dotted names.

        Args:
            rows: the most that a panel of the picture has.
        """
        result: dict[str, Any] = {
            "height": self.height,
            "annotations": list(self._titles()),
            "legend.y": round(-_LEGEND_PX / (_ROW_PX * len(self.line.snapshots)), 4),
        }
        here = len(self.line.snapshots)
        for row in range(rows):
            upper, lower = _domains(row, here) if row < here else (_NOWHERE, _NOWHERE)
            for number, domain in ((2 * row + 1, upper), (2 * row + 2, lower)):
                name = "yaxis" if number == 1 else f"yaxis{number}"
                result |= {f"{name}.visible": row < here, f"{name}.domain": domain}
            if row < here:
                low, high = self.ranges[row]
                first = "yaxis" if row == 0 else f"yaxis{2 * row + 1}"
                result[f"{first}.range"] = drawn([low, high], places(high - low) + 1)
        return result

    def _titles(self) -> Iterator[dict[str, Any]]:
        n = len(self.line.snapshots)
        for row, shot in enumerate(self.line.snapshots):
            yield {
                "text": self._title(shot, now=row == n - 1),
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": 0.0,
                "xanchor": "left",
                "y": _domains(row, n)[0][1],
                "yanchor": "bottom",
                "yshift": 3,
            }

    def _title(self, shot: Snapshot, *, now: bool) -> str:
        ends = Counter(trial.ended for trial in self.cell.trials[: shot.seen])
        more = "".join(
            f", {ends[ended]} {ended}"
            for ended in ("pruned", "infeasible", "failed")
            if ends[ended]
        )
        study = f" (study: {shot.finished})" if shot.finished > shot.seen else ""
        prior = ": almost only the prior" if shot.finished < _FEW else ""
        return f"{'now: ' if now else ''}{count_label(shot.valued, 'trial')}{more}{study}{prior}"


def _domains(row: int, rows: int) -> tuple[list[float], list[float]]:
    """Parts of the height that a row's two axes take."""
    top, pixel = 1.0 - row / rows, 1.0 / (rows * _ROW_PX)
    ends = [top - pixel * below for below in (_TITLE_PX, *_UPPER_PX, _ROW_PX)]
    return [round(ends[1], 4), round(ends[0], 4)], [round(max(ends[3], 0.0), 4), round(ends[2], 4)]


def _figure(spec: StudySpec, panels: Sequence[_Panel]) -> dict[str, Any]:
    rows = max(len(panel.line.snapshots) for panel in panels)
    groups = [list(panel.traces(visible=place == 0)) for place, panel in enumerate(panels)]
    shows = [
        [own == place for own, g in enumerate(groups) for _ in g] for place in range(len(groups))
    ]
    layouts = [panel.layout(rows) for panel in panels]
    line, choices = panels[0].line, panels[0].choices
    x: dict[str, Any] = {"anchor": "free", "position": 0}
    if line.numeric:
        tried = [t.params.get(line.path, line.at[0]) for p in panels for t in p.cell.trials]
        x |= axis(line.path, line.at, tried, log=line.log)
    else:
        x |= {
            "title": {"text": shown(line.path)},
            "tickvals": list(range(len(choices))),
            "ticktext": shown_apart(choices, 14),
            "range": [-0.5, len(choices) - 0.5],
            "zeroline": False,
        }
    layout: dict[str, Any] = {
        "xaxis": x,
        "margin": {**_MARGIN, "t": _MARGIN["t"] if len(panels) > 1 else 0, "l": 64, "r": 12},
        "legend": {"orientation": "h", "traceorder": "normal", "yanchor": "top", "x": 0},
        "updatemenus": selector(
            names(spec, [panel.cell.cell for panel in panels]),
            [[{"visible": some}, of] for some, of in zip(shows, layouts, strict=True)],
        ),
    }
    for row in range(rows):
        layout["yaxis" if row == 0 else f"yaxis{2 * row + 1}"] = {
            "title": {"text": shown(spec.metrics[0])},
            "nticks": 5,
            "zeroline": False,
        }
        layout[f"yaxis{2 * row + 2}"] = {
            "nticks": 3,
            "rangemode": "tozero",
            "exponentformat": "power",
        }
    for name, value in layouts[0].items():
        above, _, key = name.rpartition(".")
        (layout[above] if above else layout)[key] = value
    return {"data": [trace for group in groups for trace in group], "layout": layout}
