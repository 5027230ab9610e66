"""A small picture of a learning rate range test, drawn without any package.

A probe draws one for each cell. Plotly would take four times as long as the measurement of a small
model does, and 5 MB for each picture, most of it the same program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from orchestrator.training.curve_plot import seen
from orchestrator.training.curve_rules import NoAnswerError, moving_average

if TYPE_CHECKING:
    from orchestrator.training.curve import LRCurve

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_DASHES: Final = ("none", "6 4", "2 3")
# Readable on white and on black: a viewer's background is not known.
_STYLE: Final = """
  text { font: 13px sans-serif; fill: #555 } .title { font-size: 15px; font-weight: bold }
  .axis { stroke: #888 } .grid { stroke: #8883 } .raw { stroke: #2563a8; opacity: .35 }
  .mean { stroke: #2563a8; stroke-width: 2 } .range { fill: #c2571a; opacity: .15 }
  .suggestion { stroke: #c2571a; stroke-width: 2 } .mark { stroke: #8a8f98; stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) { text { fill: #bbb } }
"""


def svg(curve: LRCurve) -> str:
    """An SVG image of all sweeps: measured losses faint, moving averages bold, readings marked."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
            f"<style>{_STYLE}</style>",
            *_Picture(curve).elements(),
            "</svg>",
        ]
    )


class _Picture:
    """Where things are: learning rates from left to right, losses from bottom to top."""

    def __init__(self, curve: LRCurve) -> None:
        self._curve = curve
        self._log = curve.growth == "exponential"
        lrs = [lr for sweep in curve.sweeps for lr in sweep.lrs]
        self._lrs = (min(lrs), max(lrs))
        self._losses = seen(curve)

    def elements(self) -> Iterator[str]:
        yield from self._axes()
        yield from self._marks()
        for number, sweep in enumerate(self._curve.sweeps):
            yield from self._line("raw", sweep.lrs, sweep.losses)
            means = moving_average(sweep.losses, self._curve.smoothing)
            yield from self._line("mean", sweep.lrs, means, _DASHES[number % len(_DASHES)])

    def _axes(self) -> Iterator[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for lr, label in self._lr_ticks():
            x = self._x(lr)
            yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>'
        low, high = self._losses
        for part in range(5):
            loss = low + (high - low) * part / 4
            y = self._y(loss)
            yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>'
        yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        yield f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{bottom}"/>'
        middle = (_LEFT + right) / 2
        yield f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle">learning rate</text>'
        what = "measure on held-out batches" if self._curve.maximize else "loss"
        turned = f"rotate(-90 16 {(_TOP + bottom) / 2})"
        yield (
            f'<text x="16" y="{(_TOP + bottom) / 2}" text-anchor="middle" transform="{turned}">'
            f"{what}</text>"
        )

    def _marks(self) -> Iterator[str]:
        curve = self._curve
        if curve.reason is not None:
            yield _title(f"no suggestion: {curve.reason}")
            return
        read = curve.suggestion()
        left, right = self._x(read.low), self._x(read.high)
        height = _HEIGHT - _BOTTOM - _TOP
        yield (
            f'<rect class="range" x="{left:.1f}" y="{_TOP}" width="{max(1.0, right - left):.1f}" '
            f'height="{height}"/>'
        )
        yield self._upright("suggestion", read.value)
        for row, name in enumerate(("steepest", "minimum", "edge")):
            try:
                lr = getattr(curve, name)().value
            except NoAnswerError:
                continue
            x, y = self._x(lr), _TOP + 14 + 15 * row
            yield self._upright("mark", lr)
            yield f'<text x="{x - 4:.1f}" y="{y}" text-anchor="end">{name}</text>'
        yield _title(
            f"begin at {read.value:.2g}; search from {read.low:.2g} to {read.high:.2g}"
            + (f" ({read.note})" if read.note else "")
        )

    def _upright(self, kind: str, lr: float) -> str:
        x = f"{self._x(lr):.1f}"
        return f'<line class="{kind}" x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}"/>'

    def _line(
        self, kind: str, lrs: Sequence[float], losses: Sequence[float], dash: str = "none"
    ) -> Iterator[str]:
        """The curve as far as it is finite; what lies beyond the picture is drawn at its edge."""
        points = [
            f"{self._x(lr):.1f},{self._y(loss):.1f}"
            for lr, loss in zip(lrs, losses, strict=False)
            if math.isfinite(loss)
        ]
        if len(points) > 1:
            yield (
                f'<polyline class="{kind}" fill="none" stroke-dasharray="{dash}" '
                f'points="{" ".join(points)}"/>'
            )

    def _lr_ticks(self) -> list[tuple[float, str]]:
        low, high = self._lrs
        if not self._log:
            lrs = [low + (high - low) * part / 4 for part in range(5)]
            return [(lr, f"{lr:.2g}") for lr in lrs]
        exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        return [(10.0**k, f"1e{k}") for k in exponents]

    def _x(self, lr: float) -> float:
        low, high = self._lrs
        lr = min(max(lr, low), high)
        if self._log:
            low, high, lr = math.log(low), math.log(high), math.log(lr)
        share = (lr - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, loss: float) -> float:
        low, high = self._losses
        share = (min(max(loss, low), high) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _title(text: str) -> str:
    return f'<text class="title" x="{_LEFT}" y="28">{escape(text)}</text>'
