"""A measured loss landscape: its numbers, its sharpness, its file."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FORMAT: Final = "orchestrator.loss_landscape"
_VERSION: Final = 1
_ANGLES: Final = 64
_NOT_FINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Sharpness(NamedTuple):
    """How much the loss rises at a distance from the model.

    Attributes:
        mean: The mean rise over the points at that distance.
        maximum: The largest rise among them: at most the worst in all directions.
        radius: The distance, as a part of each filter's length.
        standard_error: Of the mean, from how directions differ; None of a single line or plane.
    """

    mean: float
    maximum: float
    radius: float
    standard_error: float | None = None


@dataclass(eq=False)
class LossLandscape:
    """The loss on a line or a plane through a model's weights; the model is the centre.

    Attributes:
        alphas: Shape (n,), symmetric about an exact 0, ascending: how far the points are along each
            direction, where 1 changes each filter by its own length.
        losses: Shape (n,) or (n, n): ``losses[i, j]`` at ``alphas[i]`` along the first direction
            and ``alphas[j]`` along the second. NaN where not evaluated yet.
        evaluated: Of the same shape, which points are.
        batch_norm: ``stored`` or ``recomputed``: which statistics batch-norm layers used.
        seed: Of the directions.
        cosine: Of the angle between the two directions; None on a line.
        weights: How many weights the directions move.
        batches: How many batches each loss is the mean of; None before the first.
        model: A hash of the model's parameters and buffers, and of which of them move.
    """

    alphas: NDArray[np.float64]
    losses: NDArray[np.float64]
    evaluated: NDArray[np.bool_]
    batch_norm: str
    seed: int
    cosine: float | None
    weights: int
    batches: int | None
    model: str

    @property
    def dimensions(self) -> int:
        """1 for a line, 2 for a plane."""
        return self.losses.ndim

    @property
    def radius(self) -> float:
        """How far it reaches in each direction."""
        return float(self.alphas[-1])

    @property
    def complete(self) -> bool:
        """Whether every point is evaluated."""
        return bool(self.evaluated.all())

    @property
    def centre(self) -> float:
        """The loss of the model itself; NaN if it is not evaluated yet."""
        return float(self.losses[(len(self.alphas) // 2,) * self.dimensions])

    def sharpness(self, radius: float = 0.5) -> Sharpness:
        """The rise of the loss on the circle of that radius about the model (on a line: at its two
        points), between grid points by linear interpolation.

        A number for the picture, of two directions out of very many. Other directions give another
        one, often by a factor of 2: `average_sharpness` averages over many, and says
        how sure that is. Only compare numbers of the same `radius` and `batch_norm`.

        Raises:
            TypeError: `radius` is no number.
            ValueError: `radius` is not above 0 or reaches beyond the landscape, or a point that it
                needs is not evaluated yet.
        """
        if not isinstance(radius, Real):
            raise TypeError(f"radius={radius!r}: must be a number")
        if not 0 < radius <= self.radius:
            raise ValueError(
                f"radius={radius}: must be above 0 and at most {self.radius:g}, how far the "
                "landscape reaches"
            )
        if self.dimensions == 1:
            points: list[tuple[float, ...]] = [(radius,), (-radius,)]
        else:
            angles = [2 * math.pi * k / _ANGLES for k in range(_ANGLES)]
            points = [(radius * math.cos(a), radius * math.sin(a)) for a in angles]
        rises = np.array([self._at(point) for point in points]) - self.centre
        return Sharpness(float(rises.mean()), float(rises.max()), float(radius))

    def _at(self, point: tuple[float, ...]) -> float:
        """The loss at a point by (bi)linear interpolation."""
        corners: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
        for x in point:
            left = int(np.clip(np.searchsorted(self.alphas, x) - 1, 0, len(self.alphas) - 2))
            low, high = self.alphas[left], self.alphas[left + 1]
            part = float((x - low) / (high - low))
            sides = [(1 - part, left), (part, left + 1)]
            corners = [(w * v, (*at, i)) for w, at in corners for v, i in sides if v != 0]
        if not all(self.evaluated[at] for _, at in corners):
            raise ValueError(
                f"the landscape is not evaluated yet at all points that this radius needs: "
                f"{int(self.evaluated.sum())} of {self.evaluated.size} are"
            )
        return sum(float(weight * self.losses[at]) for weight, at in corners)

    def plot(self, kind: str | None = None) -> go.Figure:
        """A plotly figure: ``curve`` of a line; ``surface`` (default) or ``contour`` of a plane.

        Losses that span more than a factor of 30 are drawn on a log scale, which the axis says.

        Raises:
            ValueError: there is no such kind for a landscape of these dimensions.
        """
        from orchestrator.training.landscape_figures import figure_of

        return figure_of(self, kind)

    def to_dict(self) -> dict[str, Any]:
        """The landscape as plain data for JSON; losses that are not finite as ``"nan"``, ``"inf"``
        or ``"-inf"``, those that are not evaluated as None.
        """
        flat = [
            _plain(loss) if done else None
            for loss, done in zip(self.losses.flat, self.evaluated.flat, strict=True)
        ]
        n = len(self.alphas)
        rows: list[Any] = (
            flat if self.dimensions == 1 else [flat[n * i : n * i + n] for i in range(n)]
        )
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "alphas": self.alphas.tolist(),
            "losses": rows,
            "batch_norm": self.batch_norm,
            "seed": self.seed,
            "cosine": self.cosine,
            "weights": self.weights,
            "batches": self.batches,
            "model": self.model,
        }

    @staticmethod
    def from_dict(data: object) -> LossLandscape:
        """What `to_dict` returned, as it was.

        Raises:
            ValueError: it is not a landscape, or of a later version.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise ValueError("this is not a loss landscape")
        version = data.get("version")
        if version != _VERSION:
            raise ValueError(
                f"this is a loss landscape of version {version!r}; this program reads {_VERSION}"
            )
        try:
            alphas = np.array(data["alphas"], dtype=np.float64)
            rows = np.array(data["losses"], dtype=object)
            if alphas.ndim != 1 or rows.shape not in (alphas.shape, alphas.shape * 2):
                raise ValueError(f"losses of shape {rows.shape} for alphas of {alphas.shape}")
            if len(alphas) < 3 or len(alphas) % 2 == 0 or not (np.diff(alphas) > 0).all():
                raise ValueError("alphas must ascend on both sides of a centre")
            evaluated = np.array([x is not None for x in rows.flat], dtype=bool)
            losses = [_number(x) for x in rows.flat]
            cosine, batches = data["cosine"], data["batches"]
            return LossLandscape(
                alphas=alphas,
                losses=np.array(losses, dtype=np.float64).reshape(rows.shape),
                evaluated=evaluated.reshape(rows.shape),
                batch_norm=str(data["batch_norm"]),
                seed=int(data["seed"]),
                cosine=None if cosine is None else float(cosine),
                weights=int(data["weights"]),
                batches=None if batches is None else int(batches),
                model=str(data["model"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this loss landscape is damaged: {error!r}") from error

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the landscape as JSON; the file is whole or as it was before.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(file)
        text = json.dumps(self.to_dict(), allow_nan=False)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    @staticmethod
    def load(file: str | os.PathLike[str]) -> LossLandscape:
        """What `save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not a landscape, or of a later version.
        """
        try:
            data = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(file)}: this is not a loss landscape ({error})") from None
        try:
            return LossLandscape.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{os.fspath(file)}: {error}") from None


def _plain(loss: float) -> float | str:
    loss = float(loss)
    return loss if math.isfinite(loss) else str(loss)


def _number(stored: Any) -> float:
    if stored is None:
        return math.nan
    return _NOT_FINITE[stored] if isinstance(stored, str) else float(stored)
