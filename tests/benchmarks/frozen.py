"""Random families of problems: each draws a loss of one kind, by a seeded generator, over a grid
and a search of its own.

They belong to the frozen set: nothing is tuned on them, and whoever changes one makes a new set
instead (`sets.py`). Their kinds are others than those of `problems.py`: draws from Gaussian
processes, sums of ridge functions, learning curves, plateaus, lattices, parameters that matter in
some cells only.

A family's surface is a function of a cell and of searched parameters as coordinates (`space.py`).
Numeric axes count by rank, on [0, 1]. The generator is NumPy's legacy one, whose stream never
changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from scipy import optimize, special
from scipy.stats import qmc

from orchestrator.model import Axis, Searched, StudySpec
from tests.benchmarks.problems import Problem, Values
from tests.benchmarks.space import Array, coordinates, levels
from tests.benchmarks.tables import DATA

Rng: TypeAlias = np.random.RandomState
Surface: TypeAlias = Callable[[int, Array], Array]
"""True losses, shape (rows,), of rows of coordinates in the cell of that ordinal."""
Noise: TypeAlias = Callable[[float, float], float]
"""What is observed of a true loss, given a draw from the standard normal distribution."""
Shape: TypeAlias = Callable[[Array], Array]

OPTIMA = DATA / "families.npz"
"""The least true loss of each cell of the families as they are frozen (`make_frozen.py` wrote
it).
"""
DENSE = 2**14
STARTS = 24
"""Points that the search for an optimum looks at, and how many of the best of them it climbs
from.
"""


@dataclass(frozen=True)
class Drawn:
    """One draw of a family."""

    grid: tuple[Axis, ...]
    search: tuple[Searched, ...]
    surface: Surface
    noise: Noise
    spread: float
    """Standard deviation of the noise at a good configuration, about."""
    tame: bool = True
    resolution: float = 0.0
    """Regrets below count as this (`problems.Problem`); a hundredth of how much better the best
    configuration is than the median one, where all are discrete.
    """


def axis_coordinates(grid: Sequence[Axis], rng: Rng) -> Array:
    """A row a cell: numeric axes by rank on [0, 1], the values of others as points drawn from the
    unit square.
    """
    columns = [
        np.linspace(0.0, 1.0, len(axis.values))[:, None]
        if not isinstance(axis.values[0], str)
        else rng.uniform(size=(len(axis.values), 2))
        for axis in grid
    ]
    places = itertools.product(*(range(len(axis.values)) for axis in grid))
    return np.array(
        [np.concatenate([c[i] for c, i in zip(columns, p, strict=True)]) for p in places]
    )


def with_axes(cells: Array, cell: int, x: Array) -> Array:
    """Rows of coordinates, each followed by those of their cell."""
    return np.hstack([x, np.tile(cells[cell], (len(x), 1))])


def process(rng: Rng, lengths: Array, smoothness: float = np.inf, features: int = 300) -> Shape:
    """A draw from a Gaussian process of variance 1, in random Fourier features (Rahimi and Recht
    2007): Matérn of that smoothness, squared exponential where it is infinite; an infinite length
    scale leaves a coordinate out.
    """
    omega = rng.standard_normal((len(lengths), features)) / lengths[:, None]
    if np.isfinite(smoothness):
        omega *= np.sqrt(2.0 * smoothness / rng.chisquare(2.0 * smoothness, features))
    phase, weight = rng.uniform(0.0, 2.0 * np.pi, features), rng.standard_normal(features)

    def draw(x: Array) -> Array:
        result: Array = np.sqrt(2.0 / features) * np.cos(x @ omega + phase) @ weight
        return result

    return draw


def between(rng: Rng, low: float, high: float, count: int) -> Array:
    """Numbers drawn evenly on a logarithmic scale."""
    result: Array = np.exp(rng.uniform(np.log(low), np.log(high), count))
    return result


def added(deviation: float) -> Noise:
    """Normal noise of one size everywhere."""
    return lambda true, normal: true + deviation * normal


def heavy(deviation: float, degrees: float) -> Noise:
    """Student's t noise: now and then a trial is far from what it should be."""
    return lambda true, normal: (
        true + deviation * float(special.stdtrit(degrees, special.ndtr(normal)))
    )


def growing(least: float, share: float, best: float) -> Noise:
    """Normal noise that grows with how much worse than `best` the loss is."""
    return lambda true, normal: true + (least + share * max(true - best, 0.0)) * normal


def sigmoid(x: Array) -> Array:
    """A smooth step from 0 to 1."""
    result: Array = special.expit(x)
    return result


def logfloat(path: str, low: float, high: float) -> Searched:
    return Searched(path, "float", low, high, log=True)


def gp_smooth(rng: Rng) -> Drawn:
    """One smooth process over three parameters and an axis of six, hardly any noise."""
    grid = (Axis("width", (16, 32, 64, 128, 256, 512)),)
    search = (
        logfloat("lr", 1e-4, 1.0),
        logfloat("wd", 1e-6, 1e-1),
        Searched("momentum", "float", 0.0, 1.0),
    )
    cells = axis_coordinates(grid, rng)
    shared = process(rng, np.append(between(rng, 0.25, 0.8, 3), 0.7))
    offsets = 0.3 * rng.standard_normal(len(cells))

    def surface(cell: int, x: Array) -> Array:
        return np.asarray(offsets[cell] + shared(with_axes(cells, cell, x)), float)

    return Drawn(grid, search, surface, added(0.002), 0.002)


def gp_sparse(rng: Rng) -> Drawn:
    """Six parameters, of which two matter everywhere and one a little in each cell."""
    grid = (Axis("layers", (2, 4, 8)), Axis("norm", ("none", "batch", "layer")))
    search = (
        logfloat("lr", 1e-5, 1.0),
        logfloat("wd", 1e-7, 1.0),
        *(Searched(path, "float", 0.0, 1.0) for path in ("dropout", "mixup", "smoothing")),
        Searched("warmup", "int", 0, 20),
    )
    cells = axis_coordinates(grid, rng)
    lengths = np.full(6, np.inf)
    lengths[rng.permutation(6)[:2]] = between(rng, 0.15, 0.5, 2)
    shared = process(rng, np.concatenate([lengths, np.full(cells.shape[1], 0.8)]), 2.5)
    own = []
    for _ in cells:
        lengths = np.full(6, np.inf)
        lengths[rng.randint(6)] = 0.4
        own.append(process(rng, lengths, 2.5, 60))
    offsets = 0.4 * rng.standard_normal(len(cells))

    def surface(cell: int, x: Array) -> Array:
        all_cells = offsets[cell] + shared(with_axes(cells, cell, x))
        return np.asarray(all_cells + 0.3 * own[cell](x), float)

    return Drawn(grid, search, surface, added(0.05), 0.05)


def gp_mixed(rng: Rng) -> Drawn:
    """A rough process over numbers and choices, half of it each cell's own; noise as large as the
    differences between good configurations.
    """
    grid = (Axis("model", ("a", "b", "c", "d", "e")),)
    search = (
        logfloat("lr", 1e-5, 1e-1),
        Searched("dropout", "float", 0.0, 0.7),
        Searched("heads", "int", 1, 12),
        Searched("act", "categorical", choices=("relu", "gelu", "tanh", "elu")),
        Searched("init", "categorical", choices=("normal", "uniform", "orthogonal")),
    )
    lengths = np.concatenate([between(rng, 0.2, 0.6, 3), np.full(4, 0.8)])
    acts, inits = rng.uniform(size=(4, 2)), rng.uniform(size=(3, 2))
    shared, *own = (process(rng, lengths, 1.5) for _ in range(1 + len(grid[0].values)))

    def surface(cell: int, x: Array) -> Array:
        choices = x[:, 3:].astype(int)
        full = np.hstack([x[:, :3], acts[choices[:, 0]], inits[choices[:, 1]]])
        return np.asarray(np.sqrt(0.5) * (shared(full) + own[cell](full)), float)

    return Drawn(grid, search, surface, added(0.3), 0.3)


RIDGES: tuple[Shape, ...] = (
    np.square,
    lambda z: np.sqrt(z**2 + 0.02),
    lambda z: np.tanh(3.0 * z),
    lambda z: np.logaddexp(0.0, 4.0 * z) / 2.0,
    lambda z: 0.5 * np.sin(5.0 * z),
)


def ridges(rng: Rng) -> Drawn:
    """A sum of ridge functions of parameters and axes, sixteen cells."""
    grid = (Axis("batch", (8, 32, 128, 512)), Axis("depth", (1, 2, 4, 8)))
    search = (
        logfloat("lr", 1e-4, 1.0),
        logfloat("wd", 1e-6, 1e-1),
        Searched("dropout", "float", 0.0, 0.6),
        Searched("warmup", "int", 0, 10),
    )
    cells = axis_coordinates(grid, rng)
    directions = rng.standard_normal((6, 8))
    centres, kinds = rng.uniform(0.2, 0.8, (6, 8)), rng.permutation(8) % len(RIDGES)
    heights = between(rng, 0.2, 1.0, 8)

    def surface(cell: int, x: Array) -> Array:
        full = with_axes(cells, cell, x)
        z = full @ directions - (centres * directions).sum(axis=0)
        return np.asarray(
            sum(heights[i] * RIDGES[kind](z[:, i]) for i, kind in enumerate(kinds)), float
        )

    return Drawn(grid, search, surface, added(0.01), 0.01)


def interactions(rng: Rng) -> Drawn:
    """Ridges along products of parameters with axes and with each other, with much noise."""
    grid = (Axis("augment", ("off", "on")), Axis("width", (32, 64, 128, 256, 512)))
    search = (
        logfloat("lr", 1e-5, 1e-1),
        logfloat("wd", 1e-6, 1.0),
        logfloat("eps", 1e-9, 1e-3),
        Searched("dropout", "float", 0.0, 0.8),
        Searched("beta", "float", 0.5, 1.0),
        Searched("layers", "int", 1, 6),
    )
    cells = axis_coordinates(grid, rng)
    size = len(search) + cells.shape[1]
    pairs = [(i, j) for i in range(len(search)) for j in range(i, size)]
    chosen = [[pairs[i] for i in rng.permutation(len(pairs))[:4]] for _ in range(7)]
    weights, kinds = rng.standard_normal((7, 4)), rng.permutation(7) % len(RIDGES)
    bowl, centre = between(rng, 0.2, 1.5, len(search)), rng.uniform(0.2, 0.8, len(search))

    def surface(cell: int, x: Array) -> Array:
        full = with_axes(cells, cell, x) - 0.5
        loss = (bowl * (x - centre) ** 2).sum(axis=1)
        for terms, weight, kind in zip(chosen, weights, kinds, strict=True):
            products = np.stack([full[:, i] * full[:, j] for i, j in terms], axis=1)
            loss = loss + 0.4 * RIDGES[kind](3.0 * products @ weight)
        return np.asarray(loss, float)

    return Drawn(grid, search, surface, added(0.15), 0.15)


def training(rng: Rng) -> Drawn:
    """Gradient descent with momentum on a random quadratic: what is not learnt yet, what noise was
    learnt, and divergence behind a smooth wall; heavy-tailed noise.
    """
    widths = (16, 32, 64, 128, 256)
    grid = (Axis("width", widths),)
    search = (
        logfloat("lr", 1e-4, 10.0),
        Searched("momentum", "float", 0.0, 0.98),
        Searched("epochs", "int", 1, 50, log=True),
        logfloat("wd", 1e-6, 1.0),
    )
    modes = np.arange(1.0, 41.0)
    curvature = modes ** -rng.uniform(0.8, 1.4)
    weight = modes ** -rng.uniform(0.6, 1.2)
    weight /= weight.sum()
    grows, noise = rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.12)

    def surface(cell: int, x: Array) -> Array:
        lr, momentum = 10.0 ** (5.0 * x[:, :1] - 4.0), 0.98 * x[:, 1:2]
        epochs, wd = 50.0 ** x[:, 2:3], 10.0 ** (6.0 * x[:, 3:] - 6.0)
        wide = widths[cell] / 64.0
        sharp = 4.0 * curvature * wide**grows
        rate = lr / (1.0 - momentum)
        learnt = (1.0 - np.exp(-rate * sharp * epochs)) * sharp / (sharp + wd)
        reach = wide**0.5 * 30.0
        bias = (weight * ((1.0 - learnt) ** 2)) @ (modes <= reach) + weight @ (modes > reach)
        variance = noise * wide**0.3 * (learnt**2).mean(axis=1)
        limit = 2.0 * (1.0 + momentum) / (sharp.max() + wd)
        over = np.log10(lr / limit)[:, 0]
        return np.asarray(0.1 + bias + variance + 5.0 * sigmoid(12.0 * (over - 0.1)), float)

    return Drawn(grid, search, surface, heavy(0.004, 2.5), 0.006, tame=False)


def scaling(rng: Rng) -> Drawn:
    """A scaling law in width and batch size: slow below the best learning rate, diverging above it,
    noisier the nearer to that.
    """
    widths, batches = (64, 128, 256, 512), (16, 64, 256)
    grid = (Axis("width", widths), Axis("batch", batches))
    search = (
        logfloat("lr", 1e-5, 1.0),
        Searched("warmup", "float", 0.0, 0.5),
        logfloat("clip", 0.01, 10.0),
        Searched("beta", "float", 0.8, 1.0),
        Searched("act", "categorical", choices=("relu", "gelu", "swiglu")),
    )
    cells = list(itertools.product(np.log10(widths), np.log10(batches)))
    start, by_width, by_batch = rng.uniform([-2.2, -0.9, 0.2], [-1.2, -0.3, 0.6])
    model, data = rng.uniform([0.2, 0.1], [0.35, 0.25])
    acts = rng.permutation([0.0, 0.02, 0.06])
    room, beta, clip = rng.uniform([0.5, 0.3, -1.0], [0.9, 0.8, 0.3])

    def surface(cell: int, x: Array) -> Array:
        width, batch = cells[cell][0] - 2.0, cells[cell][1] - 1.5
        lr = 5.0 * x[:, 0] - 5.0 - (start + by_width * width + by_batch * batch)
        warmup, clipped, averaged = 0.5 * x[:, 1], 3.0 * x[:, 2] - 2.0, x[:, 3]
        slow = np.logaddexp(0.0, -6.0 * lr) / 6.0 + 0.25 * np.logaddexp(0.0, 4.0 * lr)
        wall = lr - room - 0.8 * warmup + 0.25 * np.maximum(clipped - clip, -1.0)
        loss = 0.5 + 1.5 * 10.0 ** (-model * (width + 2.0)) + 10.0 ** (-data * (2.5 - batch))
        loss = loss + 0.2 * slow + 0.3 * warmup**2 + 0.05 * np.square(clipped - clip)
        loss = loss + 0.3 * (averaged - beta) ** 2 * (1.0 + 0.5 * batch)
        loss = loss + acts[x[:, 4].astype(int)]
        return np.asarray(loss + 4.0 * sigmoid(15.0 * wall), float)

    sample = np.column_stack([rng.uniform(size=(500, 4)), rng.randint(3, size=500)])
    best = min(float(surface(cell, sample).min()) for cell in range(len(cells)))
    return Drawn(grid, search, surface, growing(0.004, 0.15, best), 0.004, tame=False)


def plateau(rng: Rng) -> Drawn:
    """Nearly flat but for one valley, which lies elsewhere from cell to cell along a line."""
    grid = (Axis("width", (8, 16, 32, 64, 128, 256, 512)),)
    search = (
        logfloat("lr", 1e-5, 1.0),
        logfloat("temperature", 1e-2, 10.0),
        Searched("mix", "float", 0.0, 1.0),
    )
    centre, drift = rng.uniform(0.3, 0.7, 3), rng.uniform(-0.3, 0.3, 3)
    widths, depths = rng.uniform(0.1, 0.18, 3), rng.uniform(0.5, 1.0, 7)
    ripples = process(rng, np.full(3, 0.2))

    def surface(cell: int, x: Array) -> Array:
        away = ((x - centre - drift * (cell / 6.0 - 0.5)) / widths) ** 2
        valley = depths[cell] / (1.0 + (0.4 * away.sum(axis=1)) ** 2)
        return np.asarray(1.0 - valley + 0.02 * ripples(x), float)

    return Drawn(grid, search, surface, added(0.01), 0.01)


def lattice(rng: Rng) -> Drawn:
    """Thirty configurations in each of four cells, with losses that pairs of parameters decide (NK
    landscape, Kauffman and Weinberger 1989).
    """
    grid = (Axis("encoder", ("lstm", "gru", "conv", "attention")),)
    search = (
        Searched("layers", "int", 1, 5),
        Searched("pool", "categorical", choices=("max", "mean", "last")),
        Searched("tied", "categorical", choices=("no", "yes")),
    )
    sizes = (5, 3, 2)
    single = [rng.standard_normal(n) for n in sizes]
    paired = [rng.standard_normal((4, a, b)) for a, b in itertools.combinations(sizes, 2)]
    offsets = 0.5 * rng.standard_normal(4)

    def surface(cell: int, x: Array) -> Array:
        places = (x * (4.0, 1.0, 1.0)).round().astype(int)
        loss = offsets[cell] + sum(
            table[place] for table, place in zip(single, places.T, strict=True)
        )
        for table, (i, j) in zip(paired, itertools.combinations(range(3), 2), strict=True):
            loss = loss + 0.6 * table[cell, places[:, i], places[:, j]]
        return np.asarray(loss, float)

    return Drawn(grid, search, surface, added(0.25), 0.25, resolution=0.04)


def steps(rng: Rng) -> Drawn:
    """Whole numbers and choices only: returns that diminish with size, against a cost that pairs
    of parameters decide; no noise to speak of.
    """
    grid = (Axis("stride", (1, 2)), Axis("kernel", (1, 3, 5, 7)))
    search = (
        Searched("blocks", "int", 1, 6),
        Searched("growth", "int", 0, 4),
        Searched("norm", "categorical", choices=("none", "batch", "layer", "group")),
        Searched("skip", "categorical", choices=("no", "yes")),
    )
    gains, costs = rng.uniform(0.5, 1.5, (8, 2)), rng.uniform(0.2, 1.0, (8, 3))
    norms, skips = 0.3 * rng.standard_normal((4, 6)), 0.3 * rng.standard_normal((2, 5))

    def surface(cell: int, x: Array) -> Array:
        blocks, growth = 5.0 * x[:, 0], 4.0 * x[:, 1]
        norm, skip = x[:, 2].astype(int), x[:, 3].astype(int)
        loss = gains[cell, 0] / (1.0 + blocks) + gains[cell, 1] / (1.0 + growth)
        loss = loss + 0.1 * costs[cell, 0] * blocks + 0.1 * costs[cell, 1] * growth
        loss = loss + 0.05 * costs[cell, 2] * blocks * growth
        loss = loss + norms[norm, blocks.round().astype(int)]
        return np.asarray(loss + skips[skip, growth.round().astype(int)], float)

    return Drawn(grid, search, surface, added(0.001), 0.001, resolution=0.015)


def conditional(rng: Rng) -> Drawn:
    """Each optimiser heeds some parameters only, and the others not at all."""
    grid = (
        Axis("optimizer", ("sgd", "momentum", "adam", "rmsprop")),
        Axis("schedule", ("constant", "cosine")),
    )
    search = (
        logfloat("lr", 1e-5, 1.0),
        Searched("momentum", "float", 0.0, 1.0),
        logfloat("beta", 1e-4, 0.5),
        Searched("cycles", "int", 1, 8),
        Searched("nesterov", "categorical", choices=("no", "yes")),
    )
    heeded = np.array([rng.permutation([1, 1, 0]) for _ in range(4)])  # momentum, beta, nesterov
    lrs, others = rng.uniform(0.2, 0.9, 4), rng.uniform(0.1, 0.9, (4, 2))
    offsets, steep = rng.uniform(0.0, 0.3, 8), between(rng, 0.5, 3.0, 4)
    cycles, ripples = rng.uniform(size=4), process(rng, np.full(2, 0.25), 2.5)
    flags = 0.15 * rng.standard_normal((4, 2))

    def surface(cell: int, x: Array) -> Array:
        kind, cosine = divmod(cell, 2)
        uses = heeded[kind]
        lr = x[:, 0] - lrs[kind] - 0.1 * cosine
        momentum, beta = x[:, 1] - others[kind, 0], x[:, 2] - others[kind, 1]
        loss = offsets[cell] + 4.0 * (lr + 0.5 * uses[0] * momentum) ** 2
        loss = loss + uses[0] * steep[kind] * momentum**2 + uses[1] * 1.5 * beta**2
        loss = loss + uses[2] * flags[kind, x[:, 4].astype(int)]
        loss = loss + cosine * 0.4 * (x[:, 3] - cycles[kind]) ** 2
        return np.asarray(loss + 0.1 * ripples(x[:, [0, 0]] + 0.3 * kind), float)

    return Drawn(grid, search, surface, added(0.03), 0.03)


def elsewhere(rng: Rng) -> Drawn:
    """Two regions, far apart: in all cells but the best the one is good, in the best the other."""
    grid = (Axis("data", ("clean", "noisy", "mixed")), Axis("depth", (2, 4, 8, 16)))
    search = (
        logfloat("lr", 1e-5, 1.0),
        logfloat("wd", 1e-6, 1.0),
        Searched("dropout", "float", 0.0, 0.8),
        Searched("patience", "int", 1, 9),
    )
    here = rng.uniform(0.15, 0.35, 4)
    there = rng.uniform(0.65, 0.85, 4)
    swapped = rng.randint(2, size=4) == 1
    here[swapped], there[swapped] = there[swapped].copy(), here[swapped].copy()
    first, second = rng.uniform(0.15, 0.4, 12), rng.uniform(0.6, 0.9, 12)
    best = rng.randint(12)
    first[best], second[best] = 0.45, 0.0
    shifts = 0.05 * rng.standard_normal((12, 4))
    steep = between(rng, 0.8, 3.0, 4)

    def surface(cell: int, x: Array) -> Array:
        one = first[cell] + (steep * (x - here - shifts[cell]) ** 2).sum(axis=1)
        other = second[cell] + (steep * (x - there - shifts[cell]) ** 2).sum(axis=1)
        return np.asarray(-0.05 * np.logaddexp(-one / 0.05, -other / 0.05), float)

    return Drawn(grid, search, surface, added(0.02), 0.02)


FAMILIES: Mapping[str, Callable[[Rng], Drawn]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        gp_smooth,
        gp_sparse,
        gp_mixed,
        ridges,
        interactions,
        training,
        scaling,
        plateau,
        lattice,
        steps,
        conditional,
        elsewhere,
    )
}
"""Names of the families, and what draws each."""


@cache
def drawn(name: str, variant: int) -> Drawn:
    """The draw of that number from a family."""
    return FAMILIES[name](np.random.RandomState([variant, list(FAMILIES).index(name)]))


def optima(draw: Drawn) -> Array:
    """The least true loss of each cell, shape (cells,): a dense design (or all configurations, if
    there are no more), and its best points climbed to where they lead.
    """
    count = int(np.prod([len(axis.values) for axis in draw.grid]))
    return np.array([_optimum(draw, cell) for cell in range(count)])


def _optimum(draw: Drawn, cell: int) -> float:
    discrete = [levels(item) for item in draw.search]
    free = [j for j, each in enumerate(discrete) if each is None]
    finite = [each for each in discrete if each is not None]
    if not free:
        return float(draw.surface(cell, np.array(list(itertools.product(*finite)))).min())
    x = qmc.Sobol(len(discrete), seed=1).random(DENSE)
    for j, each in enumerate(discrete):
        if each is not None:
            x[:, j] = each[(x[:, j] * len(each)).astype(int)]
    losses = draw.surface(cell, x)
    best = np.inf
    for start in x[np.argsort(losses)[:STARTS]]:
        loss, point = _climbed(draw, cell, start, free)
        moved = True
        while moved:
            moved = False
            for other in _neighbours(point, draw.search):
                tried, at = _climbed(draw, cell, other, free)
                if tried < loss - 1e-12:
                    loss, point, moved = tried, at, True
                    break
        best = min(best, loss)
    return best


def _neighbours(point: Array, search: Sequence[Searched]) -> list[Array]:
    """Points that differ in one discrete coordinate: by one level, a choice by any."""
    found = []
    for j, item in enumerate(search):
        each = levels(item)
        if each is None:
            continue
        place = int(np.argmin(np.abs(each - point[j])))
        for other in range(len(each)):
            if abs(other - place) == 1 or (item.choices and other != place):
                found.append(point.copy())
                found[-1][j] = each[other]
    return found


def _climbed(draw: Drawn, cell: int, start: Array, free: Sequence[int]) -> tuple[float, Array]:
    """Where the steepest way down in the continuous coordinates leads, and its loss."""
    step = 1e-6 * np.vstack([np.zeros(len(free)), np.eye(len(free)), -np.eye(len(free))])

    def at(moved: Array) -> tuple[float, Array]:
        rows = np.tile(start, (len(step), 1))
        rows[:, free] = moved + step
        losses = draw.surface(cell, rows)
        up, down = losses[1 : 1 + len(free)], losses[1 + len(free) :]
        return float(losses[0]), (up - down) / 2e-6

    found = optimize.minimize(at, start[free], jac=True, bounds=[(0.0, 1.0)] * len(free))
    point = start.copy()
    point[free] = found.x
    return float(found.fun), point


@cache
def family(name: str, variant: int = 0) -> Problem:
    """A draw of a family as a problem: 0 is the frozen one, the optima of others are searched."""
    draw = drawn(name, variant)
    spec = StudySpec("", ("minimize",), (), {}, {}, draw.grid, (), None)  # type: ignore[arg-type]
    cells = list(spec.cells())

    @cache
    def least() -> Array:
        if variant:
            return optima(draw)
        with np.load(OPTIMA) as file:
            result: Array = file[name]
            return result

    def place(values: Values) -> int:
        return cells.index({axis.path: values[axis.path] for axis in draw.grid})

    def loss(values: Values) -> float:
        return float(draw.surface(place(values), coordinates(draw.search, values)[None])[0])

    def optimum(cell: Values) -> float:
        return float(least()[place(cell)])

    def report(values: Any, normal: float) -> float:
        return draw.noise(loss(values), normal)

    return Problem(
        name,
        draw.grid,
        draw.search,
        loss,
        optimum,
        draw.spread,
        report=report,
        kind="random family",
        tame=draw.tame,
        resolution=draw.resolution,
    )
