"""Trains the runs behind `tables.py` and fits what answers for values in between; rewrites the
files in ``data``.

Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/make_tables.py [name …]``; a few minutes a table
on one core.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import optimize
from scipy.stats import qmc
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.benchmarks.space import from_unit
from tests.benchmarks.tables import MEMBERS, TABLES, Array, Table
from tests.benchmarks.tables import losses as answered

RUNS = 1000
REPEATED = 100
EPOCHS = 8
WORST = 10.0
"""Validation losses are cut here: what diverged is as bad as the worst."""
FLOOR = 0.9
UNITS = 48

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@cache
def digits() -> list[Any]:
    """Images and labels, 800 to train and the others to validate on."""
    x, y = load_digits(return_X_y=True)
    split: list[Any] = train_test_split(
        (x / 16.0).astype(np.float32), y, train_size=800, random_state=0, stratify=y
    )
    return split


@cache
def cancer() -> list[Any]:
    """Standardised measurements and labels, half to train and half to validate on."""
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(
        x, y, train_size=0.5, random_state=0, stratify=y
    )
    scaler = StandardScaler().fit(x_train)
    return [scaler.transform(x_train), scaler.transform(x_valid), y_train, y_valid]


def digits_loss(values: Mapping[str, Any], seed: int) -> float:
    """Validation cross-entropy of a perceptron on 800 images of the digits after a few epochs."""
    torch.manual_seed(seed)
    inputs, x_valid, labels, y_valid = map(torch.tensor, digits())
    width = values["width"]
    model = nn.Sequential(
        nn.Linear(64, width),
        ACTIVATIONS[values["act"]](),
        nn.Dropout(values["dropout"]),
        nn.Linear(width, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=values["lr"], weight_decay=values["wd"])
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(values["batch"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x_valid), y_valid).item()
    return min(loss, WORST) if np.isfinite(loss) else WORST


def cancer_loss(values: Mapping[str, Any], seed: int) -> float:
    """Validation cross-entropy of scikit-learn's perceptron on half of the breast-cancer data after
    a few epochs.
    """
    x_train, x_valid, y_train, y_valid = cancer()
    model = MLPClassifier(
        (values["width"],),
        activation=values["act"],
        solver=values["solver"],
        alpha=values["alpha"],
        batch_size=values["batch"],
        learning_rate_init=values["lr"],
        momentum=values["momentum"],
        max_iter=EPOCHS,
        random_state=seed,
    )
    try:
        model.fit(x_train, y_train)
    except ValueError:  # weights that are not finite
        return WORST
    loss = float(log_loss(y_valid, model.predict_proba(x_valid)))
    return min(loss, WORST) if np.isfinite(loss) else WORST


def fitted(features: Array, losses: Array) -> dict[str, Array]:
    """The ensemble: networks of two layers that differ in their first weights and in the tenth of
    the runs they miss.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    floor = FLOOR * float(losses.min())
    targets = np.log(losses - floor)
    centre, scale = float(targets.mean()), float(targets.std())
    members, missed = [], []
    for _ in range(MEMBERS):
        held = rng.random(len(features)) < 0.1
        model = nn.Sequential(
            nn.Linear(features.shape[1], UNITS),
            nn.SiLU(),
            nn.Linear(UNITS, UNITS),
            nn.SiLU(),
            nn.Linear(UNITS, 1),
        )
        x, y = (
            torch.tensor(features, dtype=torch.float32),
            torch.tensor((targets - centre) / scale, dtype=torch.float32),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
        for _ in range(1500):
            optimizer.zero_grad()
            nn.functional.smooth_l1_loss(model(x[~held])[:, 0], y[~held]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            missed.append(
                1.0 - float(((model(x[held])[:, 0] - y[held]) ** 2).mean() / y[held].var())
            )
        members.append([p.detach().numpy() for p in model.parameters()])
    names = ("weight1", "bias1", "weight2", "bias2", "weight3", "bias3")
    stacked = {name: np.stack([m[i].T for m in members]) for i, name in enumerate(names)}
    parts = {
        k: (v[:, None, :] if k.startswith("bias") else v).astype(np.float16).astype(float)
        for k, v in stacked.items()
    }
    numbers = {
        "floor": floor,
        "centre": centre,
        "scale": scale,
        "explained": float(np.mean(missed)),
    }
    return parts | {name: np.array(number) for name, number in numbers.items()}


def best_in_cell(table: Table, fit: Mapping[str, Any], cell: Mapping[str, Any]) -> float:
    """Least loss of the ensemble in a cell: a dense design, then its best points climbed to where
    they lead.
    """
    unit = qmc.Sobol(len(table.search), seed=1).random(2**14)
    rows = [{**cell, **values} for values in from_unit(table.search, unit)]
    losses = answered(fit, table.features(rows))
    free = [j for j, item in enumerate(table.search) if item.kind == "float"]
    best = float(losses.min())
    for start in unit[np.argsort(losses)[:12]]:

        def at(moved: Array, start: Array = start) -> float:
            point = start.copy()
            point[free] = moved
            return float(
                answered(
                    fit, table.features([{**cell, **from_unit(table.search, point[None])[0]}])
                )[0]
            )

        best = min(
            best, float(optimize.minimize(at, start[free], bounds=[(0.0, 1.0)] * len(free)).fun)
        )
    return best


def make(table: Table) -> None:
    """Trains, fits and writes one table."""
    train = cancer_loss if table.name == "cancer" else digits_loss
    cells, before = table.cells(), time.perf_counter()
    searched = from_unit(table.search, qmc.Sobol(len(table.search), seed=0).random(RUNS))
    rows = [{**cells[i % len(cells)], **values} for i, values in enumerate(searched)]
    losses = np.array([train(row, seed) for seed, row in enumerate(rows)])
    features = table.features(rows).astype(np.float16)
    fit = fitted(features.astype(float), losses)
    good = np.argsort(answered(fit, features.astype(float)), kind="stable")[:REPEATED]
    twice = np.log([[train(rows[i], seed * RUNS + int(i)) for i in good] for seed in (1, 2)])
    parts = {
        "features": features,
        "losses": losses.astype(np.float32),
        "noise": np.std(twice[0] - twice[1]) / np.sqrt(2.0),
        "optimum": np.array([best_in_cell(table, fit, cell) for cell in cells]),
        **{name: part.astype(np.float16) if part.ndim else part for name, part in fit.items()},
    }
    np.savez_compressed(table.path, **parts)
    print(
        f"{table.name}: {RUNS} runs in {time.perf_counter() - before:.0f} s, losses "
        f"{losses.min():.3f} to {losses.max():.3f}, noise {parts['noise']:.3f}, held-out variance "
        f"explained {parts['explained']:.3f}, {table.path.stat().st_size} bytes, optima "
        f"{np.round(parts['optimum'], 3).tolist()}",
        flush=True,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or [table.name for table in TABLES]
    for table in TABLES:
        if table.name in wanted:
            make(table)


if __name__ == "__main__":
    main()
