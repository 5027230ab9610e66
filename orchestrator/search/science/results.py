"""What is found: plain numbers, in the objective's units, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.model import JSONValue
from orchestrator.search.cells.summary import CellEstimate


@dataclass(frozen=True)
class ValueEffect:
    """The mean of the optima of the cells that have this value of an axis, over the contexts that
    all its values have; `low` to `high` hold nine tenths of the belief.
    """

    value: JSONValue
    estimate: float
    low: float
    high: float
    probability_best: float


@dataclass(frozen=True)
class Contrast:
    """How much better the optimum is with one value of an axis than with another, averaged over the
    `contexts` (combinations of the other axes' values) that have both.

    `difference` is not negative: `better` is the value that the model believes in. `low` to `high`
    hold nine tenths of the belief, and below 0 the other value is the better one. `probability` is
    that of `better` being better. `largest`: with a probability of 0.95 the two differ by no more.
    `more` is about how many more trials each cell would need until it is decided which one is, or
    that it makes no difference (`alike`); 0 if it is decided, None if that is more than the
    projection looks ahead.
    """

    better: JSONValue
    worse: JSONValue
    difference: float
    low: float
    high: float
    probability: float
    largest: float
    contexts: int
    more: int | None = None
    alike: bool = False


@dataclass(frozen=True)
class AxisEffect:
    """What an axis does to the optima of the cells.

    `values` in the grid's order, those with estimates only. `contrasts` has every two of them, the
    least decided last (with more than twelve values: the best and each other). `largest`: with a
    probability of 0.95, no two of its values differ by more than this. `contexts` have all values,
    of `all_contexts`; None where no contexts do.
    """

    path: str
    values: tuple[ValueEffect, ...]
    contrasts: tuple[Contrast, ...]
    largest: float | None
    contexts: int
    all_contexts: int


@dataclass(frozen=True)
class Interaction:
    """Whether the contrast of two values of one axis is the same whatever the other axis is.

    Of all contrasts of two values, that which differs most, in units of its uncertainty, between
    two values of the other axis: with `better` instead of `worse` of `path`, the optimum is better
    by `here` where `other_path` is `other`, and by `there` (may be negative: worse) where it is
    `otherwise`. `low` to `high` hold nine tenths of the belief about the difference of the two.
    `differs` if it is not 0 with a probability of 0.9, all pairs of values considered together.
    `largest`: with a probability of 0.95 no such difference is larger than this.
    """

    path: str
    better: JSONValue
    worse: JSONValue
    other_path: str
    other: JSONValue
    otherwise: JSONValue
    here: float
    there: float
    difference: float
    low: float
    high: float
    differs: bool
    largest: float


@dataclass(frozen=True)
class CellKnowledge:
    """How well the optimum of a cell is known.

    `estimate`, `low`, `high`, `probability_best` as `CellEstimate`. `useful` of its trials are
    complete and feasible. `probability_better` is that of being better than the leading cell (0.5
    for itself), `more` about how many more trials each cell would need until it is decided which of
    the two is better, or that they do not differ by more than the margin; as in `Contrast`.
    """

    place: int
    estimate: float
    low: float
    high: float
    useful: int
    probability_best: float
    probability_better: float
    more: int | None
    alike: bool = False

    @property
    def belief(self) -> CellEstimate:
        """The same as in a summary."""
        return CellEstimate(self.estimate, self.low, self.high, self.probability_best)


@dataclass(frozen=True)
class Share:
    """A share of a variance with an interval of nine tenths."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """How much of the variance of the loss over the searched space involves a parameter: its total
    share (Sobol's total index), so shares of several parameters may add up to more than 1.

    The space is the declared one, uniform on each parameter's scale, whatever was sampled; the loss
    is the model's mean, without noise, large losses pressed together as the model sees them.
    `overall` is over all cells that have the parameter (of more than sixty cells, those with the
    most trials), `cells` for each of them by its place.
    """

    path: str
    overall: Share
    cells: dict[int, Share]


@dataclass(frozen=True)
class Edge:
    """A searched number whose best values lie at an end of its range.

    `places` of the `of` cells that have it: those in which the best value is there with a
    probability of one half or more, and is better than further in with one of 0.9. `limit` is that
    end, `widened` a range that goes beyond it by about a fifth of its width on the parameter's
    scale, or half of the way to 0 or 1; None where one of these may be a natural end.
    """

    path: str
    side: Literal["lower", "upper"]
    limit: float
    widened: float | None
    places: tuple[int, ...]
    of: int
    log: bool


@dataclass(frozen=True)
class Science:
    """What the trials of a study say about its grid and its searched parameters.

    `margin` is what counts as no difference, by `margin_rule`; `noise` the standard deviation from
    seed to seed, None where there is none; `predictability` the share of the variance of a trial's
    value that is predicted from its parameters by the other trials, with a probability of 0.95 at
    least `predictability_low`. Cells are named by their place
    in those asked about; `leader` is the one with the best estimate. `deviations`: so many times as
    wide as the model's own are all intervals of optima. `parameters` are the axes and the searched
    parameters that vary; with fewer complete trials than `needed` the model is not to be trusted
    (see `study.FEWEST`).
    """

    trials: int
    complete: int
    parameters: int
    needed: int
    margin: float
    margin_rule: str
    noise: float | None
    predictability: float
    predictability_low: float
    deviations: float
    cells: tuple[CellKnowledge, ...]
    leader: int
    axes: tuple[AxisEffect, ...]
    interactions: tuple[Interaction, ...]
    importances: tuple[Importance, ...]
    edges: tuple[Edge, ...]
