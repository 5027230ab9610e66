"""The whole analysis of a study; see `results` for what is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.model import Axis, JSONValue, Limits, same_value
from orchestrator.search.cells.configurations import Configurations
from orchestrator.search.cells.model import CellModel
from orchestrator.search.cells.summary import REPORTED, Beliefs, shared
from orchestrator.search.science.edges import edges, lower
from orchestrator.search.science.effects import Grid, effects, grid_of, interactions
from orchestrator.search.science.importance import MOST_CELLS, importances
from orchestrator.search.science.lowest import lowest
from orchestrator.search.science.predictability import predictability
from orchestrator.search.science.projection import Outlook, outlooks
from orchestrator.search.science.results import AxisEffect, CellKnowledge, Science
from orchestrator.search.trials.history import Array

FEWEST = 10
"""So many complete trials are needed for each parameter: with fewer, a Gaussian process is sure of
what it has not seen (Loeppky et al., "Choosing the sample size of a computer experiment", 2009).
"""
SMALL = 0.05
"""Of what tuning gained, the difference between the median trial and the best one, this share is
taken for nothing.
"""
_INTERVAL = (0.05, 0.5, 0.95)


def analyse(
    model: CellModel,
    believed: Beliefs,
    tried: Configurations,
    grid: Sequence[Axis],
    cells: Sequence[Mapping[str, JSONValue]],
    *,
    maximize: bool,
    seed: int,
    limits: Limits = (None, None),
) -> Science:
    """Everything that the trials say; a function of its arguments alone.

    Args:
        believed: about these cells.
        tried: the configurations of the same trials.
        cells: those to compare.
        limits: the least and the greatest value of the objective.
    """
    rng = np.random.default_rng([seed, 4])
    sign = -1.0 if maximize else 1.0

    def losses_of(lows: Array) -> Array:
        return believed.losses(lows, maximize=maximize, limits=limits)

    losses = losses_of(believed.lows)
    useful = [int(place) for place in believed.useful]
    axes = grid_of(
        [(axis.path, axis.values) for axis in grid], [cells[i] for i in useful], same_value
    )
    margin, rule = _margin(tried)
    state, surrogate = believed.state.only(believed.useful), believed.surrogate
    again = losses_of(lowest(surrogate, model.searched, state.points, state.fixed, rng))
    found = effects(axes, losses, again, sign)
    shares = shared(losses)
    leader = int(np.lexsort((-shares, np.median(losses, axis=0)))[0])  # as `CellEstimate.rank`
    against = np.eye(len(useful))[leader] - np.eye(len(useful))
    questions = np.vstack([*(_weights(axes, effect) for effect in found), against])
    told = outlooks(
        believed.optima, believed.drawn, again, questions, losses_of, margin, rng, REPORTED
    )
    found, of_rivals = _with_outlooks(found, told)
    n_parameters = len(axes.paths) + len(model.searched)
    some = np.sort(np.argsort(-state.useful, kind="stable")[:MOST_CELLS])
    matters = importances(surrogate, model.searched, state.points[some], state.fixed[some], rng)
    predicted = predictability(model, tried, np.random.default_rng([seed, 5]))
    return Science(
        trials=len(believed.surrogate.y),
        complete=len(tried.history.loss),
        parameters=n_parameters,
        needed=FEWEST * n_parameters,
        margin=margin,
        margin_rule=rule,
        noise=None if tried.noise is None else tried.noise.std,
        predictability=predicted.r2,
        predictability_low=predicted.low,
        deviations=REPORTED,
        cells=_cells(losses, shares, sign, leader, useful, believed, of_rivals),
        leader=useful[leader],
        axes=tuple(found),
        interactions=tuple(interactions(axes, losses, again)),
        importances=tuple(
            replace(m, cells={useful[some[i]]: share for i, share in m.cells.items()})
            for m in matters
        ),
        edges=tuple(
            edges(
                believed.optima,
                believed.drawn,
                model.searched,
                state.points,
                state.fixed,
                useful,
                lower(surrogate.posterior(), REPORTED),
            )
        ),
    )


def _with_outlooks(
    found: Sequence[AxisEffect], told: Sequence[Outlook]
) -> tuple[list[AxisEffect], Sequence[Outlook]]:
    """The effects with the outlook of each of their contrasts, and the outlooks that are left."""
    done = []
    for effect in found:
        mine, told = told[: len(effect.contrasts)], told[len(effect.contrasts) :]
        contrasts = zip(effect.contrasts, mine, strict=True)
        done.append(replace(effect, contrasts=tuple(replace(c, **vars(o)) for c, o in contrasts)))
    return done, told


def _margin(tried: Configurations) -> tuple[float, str]:
    """What counts as no difference, in the objective's units, and why."""
    loss = tried.history.loss
    gained = SMALL * float(np.median(loss) - loss.min())
    noise = 0.0 if tried.noise is None else tried.noise.std
    if noise > gained:
        return noise, "the standard deviation of one configuration from seed to seed"
    return gained, "a twentieth of the difference between the median trial and the best one"


def _weights(axes: Grid, effect: AxisEffect) -> Array:
    """Each contrast as a weighted sum of the cells' losses, shape (contrasts, cells)."""
    axis = axes.paths.index(effect.path)
    table, present = axes.tables(axis)
    named = [axes.values[axis][place] for place in present]
    weights = np.zeros((len(effect.contrasts), len(axes.codes)))
    for k, contrast in enumerate(effect.contrasts):
        a, b = (
            next(i for i, value in enumerate(named) if same_value(value, wanted))
            for wanted in (contrast.better, contrast.worse)
        )
        both = (table[:, a] >= 0) & (table[:, b] >= 0)
        weights[k, table[both, b]], weights[k, table[both, a]] = 1.0, -1.0
        weights[k] /= both.sum()
    return weights


def _cells(
    losses: Array,
    shares: Array,
    sign: float,
    leader: int,
    places: Sequence[int],
    believed: Beliefs,
    of_rivals: Sequence[Outlook],
) -> tuple[CellKnowledge, ...]:
    quantiles = np.quantile(sign * losses, _INTERVAL, axis=0)
    ahead = losses < losses[:, leader : leader + 1]
    level = losses == losses[:, leader : leader + 1]
    better = ahead.mean(axis=0) + 0.5 * level.mean(axis=0)
    return tuple(
        CellKnowledge(
            place,
            estimate=float(quantiles[1, i]),
            low=float(quantiles[0, i]),
            high=float(quantiles[2, i]),
            useful=int(believed.state.useful[place]),
            probability_best=float(shares[i]),
            probability_better=float(better[i]),
            more=0 if i == leader else of_rivals[i].more,
            alike=i != leader and of_rivals[i].alike,
        )
        for i, place in enumerate(places)
    )
