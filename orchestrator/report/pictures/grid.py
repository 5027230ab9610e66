"""The grid as heat maps: the best value of each cell, what the model believes of it, its trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.model import Axis, JSONValue, same_value
from orchestrator.report.palette import GREEN, RED, SCALE, namer, number, shown
from orchestrator.report.picture import Picture
from orchestrator.report.subject import Subject
from orchestrator.store import CellRow

_MOST_ACROSS: Final = 12
_MOST_DOWN: Final = 60
_MOST_WRITTEN: Final = 10  # with more columns, the numbers are shown by the pointer only
_MOST_BESIDE: Final = 6  # with more columns, the numbers need the page's whole width


@dataclass(frozen=True)
class _Sides:
    """Which axes run across and which down, with the combinations of their values."""

    across: tuple[Axis, ...]
    down: tuple[Axis, ...]

    @property
    def columns(self) -> list[tuple[JSONValue, ...]]:
        return list(itertools.product(*(axis.values for axis in self.across)))

    @property
    def rows(self) -> list[tuple[JSONValue, ...]]:
        return list(itertools.product(*(axis.values for axis in self.down)))

    @property
    def wide(self) -> bool:
        """Whether the numbers in the cells could not be read in half a page's width."""
        return _MOST_BESIDE < math.prod(len(axis.values) for axis in self.across) <= _MOST_WRITTEN

    def place(self, cell: Mapping[str, JSONValue]) -> tuple[int, int] | None:
        """Column and row of a cell; None for one that the grid no longer has."""
        x, y = _index(self.across, cell), _index(self.down, cell)
        return None if x is None or y is None else (x, y)


def pictures(subject: Subject) -> list[Picture]:
    """Best value, belief and trials of every cell, each as a heat map; none without a grid, or with
    one that is too large to be drawn.
    """
    axes = subject.spec.grid
    if not axes or subject.spec.n_cells < 2:
        return []
    if len(subject.cells) == subject.spec.n_cells and (sides := _sides(axes)):
        return list(_of_cells(subject, sides))
    if (pair := _pair(axes)) is not None:
        return [_projected(subject, pair)]
    return []


def _sides(axes: Sequence[Axis]) -> _Sides | None:
    """The split that is the most compact, if one is small enough: the widest axis across where it
    has room.
    """
    best: tuple[float, _Sides] | None = None
    for taken in itertools.product((False, True), repeat=len(axes)):
        across = tuple(axis for axis, here in zip(axes, taken, strict=True) if here)
        down = tuple(axis for axis, here in zip(axes, taken, strict=True) if not here)
        wide, high = (math.prod(len(axis.values) for axis in side) for side in (across, down))
        if not across or wide > _MOST_ACROSS or high > _MOST_DOWN:
            continue
        # many levels on one side are hard to read, more so than a long picture
        cost = abs(math.log(1.5 * high / wide)) + max(0, len(across) - 1) + 0.1 * len(down)
        if best is None or cost < best[0]:
            best = cost, _Sides(across, down)
    if best is None and len(axes) == 1 and len(axes[0].values) <= _MOST_DOWN:
        return _Sides((), tuple(axes))
    return None if best is None else best[1]


def _pair(axes: Sequence[Axis]) -> _Sides | None:
    """Two axes of a large grid, over the others of which the best is shown."""
    small = [axis for axis in axes if 1 < len(axis.values) <= _MOST_DOWN]
    narrow = [axis for axis in small if len(axis.values) <= _MOST_ACROSS]
    for axis in narrow:
        others = [other for other in small if other is not axis]
        if others:
            return _Sides((axis,), (others[0],))
    return None


def _of_cells(subject: Subject, sides: _Sides) -> Iterator[Picture]:
    metric, maximize = subject.spec.metrics[0], subject.maximize
    cells = [(place, cell) for cell in subject.cells if (place := sides.place(cell.values))]
    closed = [place for place, cell in cells if cell.state == "CLOSED" and not cell.settled]
    settled = [place for place, cell in cells if cell.settled]
    marks = " A cross marks a cell that was closed." if closed else ""
    marks += " A ring marks a cell that had enough trials." if settled else ""
    alone = " by the first objective alone" if len(subject.spec.directions) > 1 else ""
    hover = {place: _told(subject, cell, k) for k, (place, cell) in enumerate(cells)}
    best = {place: cell.best for place, cell in cells if cell.best is not None}
    if best:
        yield Picture(
            "grid-best",
            f"The grid: best {metric} observed",
            f"The best of each cell's complete trials{alone}; brighter is better. A single lucky "
            f"trial can make a cell look better than it is.{marks}",
            _figure(
                sides,
                best,
                {p: number(v) for p, v in best.items()},
                hover,
                closed,
                settled,
                not maximize,
            ),
            sides.wide,
        )
    believed = {
        place: estimate
        for (place, _), estimate in zip(cells, subject.estimates, strict=True)
        if estimate is not None
    }
    if believed:
        yield Picture(
            "grid-believed",
            f"The grid: {metric} that each cell can reach",
            "The median of what the model believes of the best value that each cell can reach, "
            "without noise; below it the probability that no other cell reaches a better one."
            f"{marks}",
            _figure(
                sides,
                {place: one.estimate for place, one in believed.items()},
                {
                    place: f"{number(one.estimate)}<br>{100 * one.probability_best:.0f} %"
                    for place, one in believed.items()
                },
                hover,
                closed,
                settled,
                not maximize,
            ),
            sides.wide,
        )
    promise = subject.spec.budget.per_cell
    yield Picture(
        "grid-trials",
        "The grid: trials of each cell",
        f"Complete and pruned trials of those that the cell is to get; every open cell is promised "
        f"{promise}.{marks}",
        _figure(
            sides,
            {place: float(cell.spent) for place, cell in cells},
            {place: _of(cell) for place, cell in cells},
            hover,
            closed,
            settled,
            False,
        ),
        sides.wide,
    )


def _of(cell: CellRow) -> str:
    share = max(cell.share, cell.spent)
    return f"{cell.spent} of {share}{'+' if cell.grows else ''}"


def _told(subject: Subject, cell: CellRow, k: int) -> str:
    """All that there is to say of a cell, in lines."""
    lines = [f"{shown(path)} = {shown(value)}" for path, value in cell.values.items()]
    metric = shown(subject.spec.metrics[0])
    if cell.best is not None:
        lines.append(f"best {metric}: {number(cell.best)} (trial {cell.best_trial})")
    if (one := subject.estimates[k]) is not None:
        lines.append(
            f"can reach {number(one.estimate)} (90 %: {number(one.low)} to {number(one.high)})"
        )
        lines.append(f"P(best cell) = {one.probability_best:.2f}")
    promise = subject.spec.budget.per_cell
    lines.append(f"trials: {_of(cell)}, promised {promise}")
    if cell.failed:
        lines.append(f"failed: {cell.failed}")
    if cell.state == "CLOSED":
        lines.append(f"{'' if cell.settled else 'closed: '}{shown(cell.reason, 60)}")
    return "<br>".join(lines)


def _projected(subject: Subject, sides: _Sides) -> Picture:
    """A large grid by two of its axes, from the trials that there are."""
    sign = 1.0 if subject.maximize else -1.0
    best: dict[tuple[int, int], float] = {}
    counts: dict[tuple[int, int], int] = {}
    for trial in subject.complete:
        assert trial.values
        if (place := sides.place(trial.params)) is None:
            continue
        counts[place] = counts.get(place, 0) + 1
        value = trial.values[0]
        if place not in best or sign * value > sign * best[place]:
            best[place] = value
    (across,), (down,) = sides.across, sides.down
    left = len(subject.spec.grid) - 2
    over = f"over the other {f'{left} axes' if left > 1 else 'axis'} " if left else ""
    return Picture(
        "grid-best",
        f"The grid by two axes: best {subject.spec.metrics[0]} observed",
        f"The grid has {subject.spec.n_cells:,} cells, too many to show each: this is the best "
        f"{over}for each value of {across.path} and {down.path}; brighter is better.",
        _figure(
            sides,
            best,
            {place: number(value) for place, value in best.items()},
            {place: f"{number(v)}<br>{counts[place]} complete" for place, v in best.items()},
            [],
            [],
            not subject.maximize,
        ),
        sides.wide,
    )


def _figure(
    sides: _Sides,
    values: Mapping[tuple[int, int], float],
    texts: Mapping[tuple[int, int], str],
    hover: Mapping[tuple[int, int], str],
    closed: Sequence[tuple[int, int]],
    settled: Sequence[tuple[int, int]],
    reverse: bool,
) -> dict[str, Any]:
    columns, rows = sides.columns, sides.rows
    written = len(columns) <= _MOST_WRITTEN and len(rows) <= _MOST_DOWN / 2

    def table(of: Mapping[tuple[int, int], Any]) -> list[list[Any]]:
        return [[of.get((x, y)) for x in range(len(columns))] for y in range(len(rows))]

    heat: dict[str, Any] = {
        "type": "heatmap",
        "z": table(values),
        "text": table(texts),
        "hovertext": table(hover),
        "hoverinfo": "text",
        "hoverongaps": False,
        "colorscale": SCALE,
        "reversescale": reverse,
        "showscale": not written,
        "xgap": 2,
        "ygap": 2,
    }
    if written:
        heat["texttemplate"] = "%{text}"
    traces = [heat]
    marks = ((closed, "x-thin", RED), (settled, "circle-open", GREEN))
    traces += [_marks(places, symbol, color, hover) for places, symbol, color in marks if places]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "tickvals": list(range(len(columns))),
                "ticktext": _labels(sides.across, columns),
                "title": {"text": _title(sides.across)},
                "range": [-0.5, len(columns) - 0.5],
                "showgrid": False,
                "zeroline": False,
            },
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": _labels(sides.down, rows),
                "title": {"text": _title(sides.down)},
                "range": [len(rows) - 0.5, -0.5],
                "showgrid": False,
                "zeroline": False,
            },
            "height": max(240, min(1400, 110 + 44 * len(rows))),
            "margin": {"t": 10},
        },
    }


def _marks(
    places: Sequence[tuple[int, int]],
    symbol: str,
    color: str,
    hover: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "hovertext": [hover[place] for place in places],
        "hoverinfo": "text",
        "marker": {
            "symbol": symbol,
            "size": 26,
            "color": color,
            "line": {"width": 2, "color": color},
        },
        "showlegend": False,
    }


def _labels(axes: Sequence[Axis], combinations: Sequence[tuple[JSONValue, ...]]) -> list[str]:
    names = [namer(axis.values, 14) for axis in axes]
    return [
        " · ".join(name(value) for name, value in zip(names, values, strict=True))
        for values in combinations
    ]


def _title(axes: Sequence[Axis]) -> str:
    return " · ".join(shown(axis.path) for axis in axes)


def _index(axes: Sequence[Axis], cell: Mapping[str, JSONValue]) -> int | None:
    index = 0
    for axis in axes:
        value = cell.get(axis.path)
        place = next((k for k, one in enumerate(axis.values) if same_value(one, value)), None)
        if place is None:
            return None
        index = index * len(axis.values) + place
    return index
