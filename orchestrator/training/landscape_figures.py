"""Pictures of loss landscapes, with plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.training.choices import look_up
from orchestrator.training.surface import LossLandscape

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KINDS: Final = {1: ("curve",), 2: ("surface", "contour")}
_WIDE_RANGE: Final = 30.0
_LEVELS: Final = 20
_COLORS: Final = "Viridis"
_PANEL_PX: Final = 480


def figure_of(landscape: LossLandscape, kind: str | None = None) -> go.Figure:
    """One landscape: as `LossLandscape.plot`."""
    kinds = _KINDS[landscape.dimensions]
    chosen = kinds[0] if kind is None else look_up("kind", kind, {one: one for one in kinds})
    return _figure({"": landscape}, (chosen,))


def compare_landscapes(landscapes: Mapping[str, LossLandscape]) -> go.Figure:
    """Landscapes side by side, with the same axes and the same colours for the same loss: planes as
    surfaces above contours, lines as curves in one picture.

    Args:
        landscapes: By the title of each, for instance ``{"SGD": …, "SAM": …}``.

    Raises:
        TypeError: It is no mapping of landscapes.
        ValueError: There is none, or they differ in dimensions or in `batch_norm`, so that a
            comparison would mislead.
    """
    if not isinstance(landscapes, Mapping):
        raise TypeError(
            f"landscapes: {type(landscapes).__name__} is no mapping of landscapes by their titles"
        )
    for title, one in landscapes.items():
        if not isinstance(one, LossLandscape):
            raise TypeError(f"landscapes: {type(one).__name__} of {title!r} is no LossLandscape")
    if not landscapes:
        raise ValueError("landscapes: there is none to compare")
    first_title, first = next(iter(landscapes.items()))
    for title, other in landscapes.items():
        for name in ("dimensions", "batch_norm"):
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                raise ValueError(
                    f"landscapes: {name} is {one!r} for {first_title!r} and {two!r} for {title!r}; "
                    "they cannot be compared"
                )
    return _figure(landscapes, _KINDS[first.dimensions])


@dataclass(frozen=True)
class _Scale:
    """How losses are drawn: as they are, or their logarithms."""

    log: bool
    low: float
    high: float

    @staticmethod
    def of(landscapes: Sequence[LossLandscape]) -> _Scale:
        every = np.concatenate([one.losses[one.evaluated].ravel() for one in landscapes])
        finite = every[np.isfinite(every)]
        if not len(finite):
            return _Scale(False, 0.0, 1.0)
        low, high = float(finite.min()), float(finite.max())
        log = low > 0 and high / low > _WIDE_RANGE
        if log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.02 * (high - low) or 0.5
        return _Scale(log, low - margin, high + margin)

    def drawn(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is drawn of losses; NaN, which leaves a gap, of those that are not finite."""
        known = np.where(np.isfinite(losses), losses, np.nan)
        return np.log10(known) if self.log else known

    @property
    def ticks(self) -> dict[str, Any]:
        if not self.log:
            return {}
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
        values = [m * 10.0**d for d in decades for m in steps]
        shown = [v for v in values if self.low <= math.log10(v) <= self.high]
        return {"tickvals": [math.log10(v) for v in shown], "ticktext": [f"{v:g}" for v in shown]}

    @property
    def title(self) -> str:
        return "loss (log scale)" if self.log else "loss"


def _figure(landscapes: Mapping[str, LossLandscape], kinds: Sequence[str]) -> go.Figure:
    import plotly.graph_objects as go  # slow to import
    from plotly import subplots

    scale = _Scale.of(list(landscapes.values()))
    reach = max(one.radius for one in landscapes.values())
    if kinds == ("curve",):
        return _curves(go, landscapes, scale, reach)
    columns = len(landscapes)
    types = [{"type": "scene" if kind == "surface" else "xy"} for kind in kinds]
    figure = subplots.make_subplots(
        rows=len(kinds),
        cols=columns,
        specs=[[kind] * columns for kind in types],
        subplot_titles=[title for _ in kinds[:1] for title in landscapes],
        horizontal_spacing=0.08,
        vertical_spacing=0.06,
    )
    for column, landscape in enumerate(landscapes.values(), start=1):
        for row, kind in enumerate(kinds, start=1):
            draw = _surface if kind == "surface" else _contour
            trace = draw(go, landscape, scale)
            trace.showscale = row == column == 1
            figure.add_trace(trace, row=row, col=column)
    axis = {"title": "first direction", "range": [-reach, reach]}
    other = {"title": "second direction", "range": [-reach, reach]}
    loss = {"title": "", "range": [scale.low, scale.high], **scale.ticks}
    if "surface" in kinds:
        figure.update_scenes(
            xaxis=axis,
            yaxis=other,
            zaxis=loss,  # the colours' bar says what it is
            aspectmode="cube",
            camera={"eye": {"x": 1.5, "y": 1.5, "z": 0.9}},
        )
    if "contour" in kinds:
        figure.update_xaxes(**axis, constrain="domain")
        figure.update_yaxes(range=other["range"])
        figure.update_yaxes(title=other["title"], col=1)
        _square(figure, columns, first=kinds == ("contour",))
    figure.update_layout(
        template="plotly_white",
        width=_PANEL_PX * columns + 120,
        height=_PANEL_PX * len(kinds) + 40,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
    )
    return figure


def _square(figure: go.Figure, columns: int, *, first: bool) -> None:
    """Gives both directions of each contour the same length."""
    for column in range(1, columns + 1):
        name = f"x{column if column > 1 else ''}"
        figure.update_yaxes(scaleanchor=name, scaleratio=1, row=1 if first else 2, col=column)


def _colors(prefix: str, scale: _Scale) -> dict[str, Any]:
    """The same for every trace; a shared colour axis fails where surfaces and contours meet."""
    return {
        "colorscale": _COLORS,
        f"{prefix}min": scale.low,
        f"{prefix}max": scale.high,
        "colorbar": {"title": {"text": scale.title}, **scale.ticks},
    }


def _surface(go: ModuleType, landscape: LossLandscape, scale: _Scale) -> Any:
    z = scale.drawn(landscape.losses).T
    return go.Surface(
        x=landscape.alphas,
        y=landscape.alphas,
        z=z,
        **_colors("c", scale),
        customdata=landscape.losses.T,
        hovertemplate="%{x:.2f}, %{y:.2f}: loss %{customdata:.4g}<extra></extra>",
    )


def _contour(go: ModuleType, landscape: LossLandscape, scale: _Scale) -> Any:
    return go.Contour(
        x=landscape.alphas,
        y=landscape.alphas,
        z=scale.drawn(landscape.losses).T,
        **_colors("z", scale),
        contours={
            "start": scale.low,
            "end": scale.high,
            "size": (scale.high - scale.low) / _LEVELS,
        },
        line={"width": 0.5, "color": "white"},
        customdata=landscape.losses.T,
        hovertemplate="%{x:.2f}, %{y:.2f}: loss %{customdata:.4g}<extra></extra>",
    )


def _curves(
    go: ModuleType, landscapes: Mapping[str, LossLandscape], scale: _Scale, reach: float
) -> go.Figure:
    figure = go.Figure()
    for title, landscape in landscapes.items():
        figure.add_trace(
            go.Scatter(
                x=landscape.alphas,
                y=scale.drawn(landscape.losses),
                name=title,
                mode="lines+markers",
                customdata=landscape.losses,
                hovertemplate="%{x:.2f}: loss %{customdata:.4g}<extra></extra>",
            )
        )
    figure.update_layout(
        template="plotly_white",
        showlegend=len(landscapes) > 1,
        xaxis={"title": "direction (1: each filter's own length)", "range": [-reach, reach]},
        yaxis={"title": scale.title, "range": [scale.low, scale.high], **scale.ticks},
        width=2 * _PANEL_PX,
        height=_PANEL_PX,
    )
    return figure
