"""How well the parameters of a trial predict its value: R² of trials that the model has not seen.

Leave-one-out predictions in closed form keep the hyperparameters, which have seen every trial: with
few trials they fit noise, and an R² of 0.3 to 0.5 comes from nothing. So few trials are left out by
folds, and all is learnt anew from the others (Hastie, Tibshirani and Friedman, "The Elements of
Statistical Learning", 7.10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.search.cells.configurations import Configurations
from orchestrator.search.cells.model import CellModel
from orchestrator.search.gp.process import BELIEVING
from orchestrator.search.gp.surrogate import MAX_FITTED, Fits, Surrogate
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.threads import Library

linalg = Library("scipy.linalg")

N_FOLDS = 10
_NORMAL = 1.645  # nine tenths of a normal distribution lie within so many deviations


@dataclass(frozen=True)
class Predictability:
    """The share of the variance of a trial's value that other trials predict; `low` with a
    probability of 0.95 no less, by how much trials differ in it.
    """

    r2: float
    low: float


def predictability(
    model: CellModel, tried: Configurations, rng: np.random.Generator
) -> Predictability:
    """Of the complete trials, in the model's units; losses far beyond the median are pressed
    together there.

    Of more trials than hyperparameters are fitted to, these are kept, and all of those that the
    model is given are left out one by one.

    Args:
        rng: draws the folds.
    """
    if len(tried.history.loss) > MAX_FITTED:
        return _compared(*_one_by_one(tried.surrogate))
    return _compared(*_by_folds(model, tried, rng))


def _compared(errors: Array, plain: Array) -> Predictability:
    """From the errors of the model, and of the mean alone."""
    gain, total = plain**2 - errors**2, float(np.mean(plain**2))
    if total <= 0.0:
        return Predictability(0.0, 0.0)
    r2 = float(gain.mean()) / total
    # the deviation of a ratio of means
    residual = (gain - r2 * plain**2) / total
    return Predictability(r2, r2 - _NORMAL * float(residual.std()) / len(plain) ** 0.5)


def _by_folds(
    model: CellModel, tried: Configurations, rng: np.random.Generator
) -> tuple[Array, Array]:
    history, n_searched = tried.history, tried.surrogate.layout.n_searched
    n = len(history.loss)
    never = np.zeros(n, dtype=bool)
    fold = rng.permutation(n) % N_FOLDS
    x = tried.surrogate.layout.filled(history.x)
    errors, plain = np.empty(n), np.empty(n)
    for k in range(N_FOLDS):
        out = fold == k
        one = model.surrogate(history.only(~out), believing=True, fits=Fits(noise=BELIEVING))
        y = one.scale.standard(history.loss[out], never[out])
        predicted = one.posterior().mean(x[out, :n_searched], x[out, n_searched:])[:, 0]
        # in the units of all, so that folds can be added
        unit = one.scale.std / tried.surrogate.scale.std
        errors[out], plain[out] = unit * (y - predicted), unit * (y - one.y.mean())
    return errors, plain


def _one_by_one(surrogate: Surrogate) -> tuple[Array, Array]:
    """In closed form (Rasmussen and Williams, 2006, 5.4.2)."""
    inverse = linalg.cho_solve((surrogate.posterior()._factor, True), np.eye(len(surrogate.y)))
    n = len(surrogate.y)
    # against the mean of the others, so that the mean alone predicts nothing
    plain = (surrogate.y - surrogate.y.mean()) * n / (n - 1)
    return (inverse @ surrogate.y) / np.diag(inverse), plain
