"""Trains the tables of `probed_tables.py` and probes their cells; rewrites ``data/probes.npz``.

Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/make_probes.py [name …]``; half an hour or so on
one core. With ``--probe`` only the probes are measured, in a minute.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
    make_classification,
    make_friedman1,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.training.parts import Parts
from orchestrator.training.probes import lr_range
from tests.benchmarks.probed_tables import BOUNDS, BUILDING, FILE, HELD_OUT, LRS, SEEDS, Probed
from tests.benchmarks.tables import Array
from tests.benchmarks.trainings import Networks, Optimiser, Shape, patches, rows_of_steps

TOGETHER = 88
"""Networks trained side by side: as many as fit the cache."""
WORST = 3.0
"""Losses are relative to that of a model that knows nothing of the inputs; they are cut here: what
diverged is as bad as the worst.
"""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """Inputs and targets to train and to validate on."""

    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor

    @property
    def outputs(self) -> int:
        """What a network for it has."""
        return 1 if self.y.is_floating_point() else int(self.y.max()) + 1

    @property
    def of_nothing(self) -> float:
        """The loss of a model that knows nothing of the inputs."""
        if self.y.is_floating_point():
            return float(self.y_valid.var(unbiased=False))
        shares = torch.bincount(self.y_valid) / len(self.y_valid)
        return float(-(shares * shares.log()).sum())


def split(x: Any, y: Any, train: int, *, scale: bool = True) -> Data:
    """Rows in a seeded order, the first `train` to train on; inputs, and targets that are numbers,
    standardised.
    """
    numbers = y.dtype.kind == "f"
    x_train, x_valid, y_train, y_valid = train_test_split(
        x, y, train_size=train, random_state=0, stratify=None if numbers else y
    )
    if scale:
        scaler = StandardScaler().fit(x_train)
        x_train, x_valid = scaler.transform(x_train), scaler.transform(x_valid)
    if numbers:
        mean, std = y_train.mean(), y_train.std()
        y_train, y_valid = (y_train - mean) / std, (y_valid - mean) / std
    kind = torch.float32 if numbers else torch.int64
    return Data(
        x=torch.tensor(x_train, dtype=torch.float32),
        y=torch.tensor(y_train, dtype=kind),
        x_valid=torch.tensor(x_valid, dtype=torch.float32),
        y_valid=torch.tensor(y_valid, dtype=kind),
    )


def spirals() -> Data:
    """Three arms in the plane that overlap."""
    rng = np.random.default_rng(0)
    arm, along = rng.integers(3, size=1200), rng.uniform(0.1, 1.0, 1200)
    angle = 2.0 * np.pi * arm / 3.0 + 5.0 * along + 0.6 * rng.standard_normal(1200)
    return split(along[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]), arm, 700)


def images() -> Data:
    """The digits, cut up for convolutions."""
    x, y = load_digits(return_X_y=True)
    whole = split(x / 16.0, y, 1000, scale=False)
    return replace(whole, x=patches(whole.x), x_valid=patches(whole.x_valid))


def wines() -> Data:
    """The wines, measured so badly that they cannot always be told apart."""
    x, y = load_wine(return_X_y=True)
    blur = 1.5 * x.std(axis=0) * np.random.default_rng(0).standard_normal(x.shape)
    return split(x + blur, y, 100)


def clusters(classes: int, weights: list[float] | None, seed: int) -> Data:
    """Overlapping clusters in twenty dimensions."""
    x, y = make_classification(
        1800,
        20,
        n_informative=10,
        n_redundant=4,
        n_classes=classes,
        n_clusters_per_class=2,
        weights=weights,
        flip_y=0.03,
        class_sep=1.2,
        random_state=seed,
    )
    return split(x, y, 1200)


@cache
def data(name: str) -> Data:
    """The data of a table."""
    if name == "digits-sgd":
        x, y = load_digits(return_X_y=True)
        return split(x / 16.0, y, 1000, scale=False)
    if name == "cancer-adamw":
        x, y = load_breast_cancer(return_X_y=True)
        return split(x, y, 300)
    if name == "clusters":
        return clusters(10, None, 1)
    if name == "spirals":
        return spirals()
    if name == "wine-adamw":
        return wines()
    if name == "digits-cnn":
        return images()
    if name == "friedman-layernorm":
        x, y = make_friedman1(1000, noise=1.0, random_state=3)
        return split(x, y, 500)
    if name == "diabetes-rmsprop":
        x, y = load_diabetes(return_X_y=True)
        return split(x, y, 300)
    return clusters(5, [0.5, 0.25, 0.15, 0.07, 0.03], 2)


@dataclass(frozen=True)
class Recipe:
    """How the networks of a cell are made and trained."""

    shape: Shape
    optimizer: str
    momentum: float = 0.9
    decay: float = 0.0
    cosine: bool = False


def recipe(table: Probed, cell: Values) -> Recipe:
    """Of a cell of a table."""
    inputs, outputs = data(table.name).x.shape[1], data(table.name).outputs
    width = cell.get("width", 32)
    if table.name == "digits-sgd":
        return Recipe(Shape(inputs, outputs, (32,), norm=cell["norm"]), "sgd")
    if table.name == "cancer-adamw":
        return Recipe(Shape(inputs, outputs, (width,), activation="tanh"), "adamw")
    if table.name == "clusters":
        return Recipe(Shape(inputs, outputs, (48,)), cell["optimizer"])
    if table.name == "spirals":
        return Recipe(Shape(inputs, outputs, (24,) * cell["depth"], activation="tanh"), "sgd")
    if table.name == "wine-adamw":
        return Recipe(Shape(inputs, outputs, (16, 16), activation=cell["activation"]), "adamw")
    if table.name == "digits-cnn":
        shape = Shape(inputs, outputs, channels=(6, 12))
        return Recipe(shape, "sgd", cosine=cell["schedule"] == "cosine")
    if table.name == "friedman-layernorm":
        return Recipe(Shape(inputs, outputs, (32, 32), norm="layer"), cell["optimizer"])
    if table.name == "diabetes-rmsprop":
        return Recipe(Shape(inputs, outputs, (width,)), "rmsprop")
    return Recipe(Shape(inputs, outputs, (width, width), activation="gelu"), "sgd", decay=1e-4)


def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of each network, shape (networks,)."""
    if targets.is_floating_point():
        return ((outputs[..., 0] - targets) ** 2).mean(dim=-1)
    logs = functional.log_softmax(outputs, dim=2)
    return -logs.gather(2, targets[..., None])[..., 0].mean(dim=1)


def trained(table: Probed, cell: Values, lrs: Tensor, others: Tensor, seeds: list[int]) -> Tensor:
    """The validation loss of each network: its learning rate, second parameter and seed."""
    of, how = data(table.name), recipe(table, cell)
    name, column = table.other.path, others[:, None]
    momentum = column if name == "momentum" else torch.full_like(column, how.momentum)
    decay = column if name == "wd" else torch.full_like(column, how.decay)
    dropout = column if name == "dropout" else None
    networks = Networks(how.shape, seeds, dropout)
    optimiser = Optimiser(how.optimizer, lrs[:, None], momentum, decay)
    order = sorted(set(seeds))
    rows = torch.stack([rows_of_steps(len(of.y), cell["batch"], table.steps, s) for s in order])
    mine = torch.tensor([order.index(seed) for seed in seeds])
    torch.manual_seed(0)
    for step in range(table.steps):
        which = rows[:, step]
        networks.weights.grad = None
        loss = losses_of(networks(of.x[which][mine]), of.y[which][mine])
        loss.sum().backward()
        optimiser.step(
            networks.weights,
            0.5 + 0.5 * math.cos(math.pi * step / table.steps) if how.cosine else 1.0,
        )
    networks.eval()
    with torch.no_grad():
        n = len(seeds)
        found = losses_of(
            networks(of.x_valid.expand(n, -1, -1)), of.y_valid.expand(n, *of.y_valid.shape)
        )
    return torch.nan_to_num(found / of.of_nothing, nan=WORST).clamp(max=WORST)


def trainings(table: Probed, cell: Values) -> Array:
    """The losses of all trainings of a cell; shape (learning rates, others, seeds)."""
    each = torch.cartesian_prod(
        torch.tensor(LRS, dtype=torch.float32),
        torch.tensor(table.others, dtype=torch.float32),
        torch.arange(float(SEEDS)),
    )
    parts = [
        trained(table, cell, part[:, 0], part[:, 1], part[:, 2].int().tolist())
        for part in each.split(TOGETHER)
    ]
    return torch.cat(parts).reshape(len(LRS), len(table.others), SEEDS).numpy()


class Alone(nn.Module):
    """One network, as a user of the range test has it."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.networks(x[None])[0]
        return result


def optimizer_of(table: Probed, how: Recipe, weights: Any) -> torch.optim.Optimizer:
    """Torch's optimiser of a recipe, with the default of the table's second parameter."""
    momentum = table.default if table.other.path == "momentum" else how.momentum
    decay = table.default if table.other.path == "wd" else how.decay
    if how.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=LRS[0], weight_decay=decay)
    if how.optimizer == "rmsprop":
        return torch.optim.RMSprop(weights, lr=LRS[0], momentum=momentum, weight_decay=decay)
    return torch.optim.SGD(weights, lr=LRS[0], momentum=momentum, weight_decay=decay)


class Trial:
    """What the probe's trial is asked for."""

    def log_artifact(self, *args: Any, **kwargs: Any) -> None:
        """Keeps nothing: the bounds are all that is wanted."""


def probed(table: Probed, cell: Values) -> tuple[float, float, int]:
    """Ends of the bounds that the probe `lr_range` finds in a cell, NaN where its curve says
    nothing, and how many steps it took.
    """
    how, of = recipe(table, cell), data(table.name)
    dropout = torch.tensor([[table.default]]) if table.other.path == "dropout" else None
    rows = rows_of_steps(len(of.y), cell["batch"], 300, 0)

    def build(cfg: Any, trial: Any) -> Parts:
        torch.manual_seed(0)
        model = Alone(Networks(how.shape, [0], dropout))
        return Parts(
            model,
            optimizer_of(table, how, model.parameters()),
            lambda outputs, targets: losses_of(outputs[None], targets[None])[0],
            ((of.x[each], of.y[each]) for each in rows),
        )

    found = lr_range({"lr": LRS[0]}, Trial(), build=build, parameter="lr")
    low, high = found.get("bounds", {}).get("lr", (math.nan, math.nan))
    return low, high, found["facts"]["steps"]


def train(tables: Sequence[Probed]) -> None:
    """Trains the tables and keeps their losses."""
    stored: dict[str, Any] = dict(np.load(FILE)) if FILE.exists() else {}
    for table in tables:
        before = time.process_time()
        losses = np.array([trainings(table, cell) for cell in table.cells])
        stored[f"{table.name}.losses"] = losses.astype(np.float16)
        np.savez_compressed(FILE, **stored)
        print(f"{table.name}: {losses.size} trainings in {time.process_time() - before:.0f} s")


def probe(tables: Sequence[Probed]) -> None:
    """Probes the cells of the tables and keeps what was found."""
    stored: dict[str, Any] = dict(np.load(BOUNDS)) if BOUNDS.exists() else {}
    for table in tables:
        each = np.array([probed(table, cell) for cell in table.cells])
        stored[f"{table.name}.bounds"], stored[f"{table.name}.probe_steps"] = (
            each[:, :2],
            each[:, 2],
        )
        np.savez_compressed(BOUNDS, **stored)
        print(f"{table.name}: {each[:, 2].sum():.0f} steps of probes")


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    wanted = [name for name in sys.argv[1:] if name != "--probe"]
    tables = [t for t in (*BUILDING, *HELD_OUT) if not wanted or t.name in wanted]
    if "--probe" not in sys.argv:
        train(tables)
    probe(tables)


if __name__ == "__main__":
    main()
