"""Trains the runs behind the frozen tables and finds the optima of the frozen random families;
writes the files of ``data`` that the frozen set is made of.

It is here to show where they come from. A frozen set is not made again: who wants other problems
makes a new set (`sets.py`).

Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/make_frozen.py [name …]``; ten minutes or so
for all on one core.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.stats import qmc
from sklearn.datasets import (
    load_diabetes,
    load_digits,
    load_wine,
    make_classification,
    make_friedman1,
    make_friedman2,
    make_moons,
)
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVR
from torch import nn

from tests.benchmarks.frozen import FAMILIES, OPTIMA, drawn, optima
from tests.benchmarks.make_tables import WORST, best_in_cell, fitted
from tests.benchmarks.space import from_unit
from tests.benchmarks.tables import FROZEN_TABLES, Array, RecordedTable, Table
from tests.benchmarks.tables import losses as answered

SEEDS = 3
RUNS = {
    "diabetes": 480,
    "covertype-like": 400,
    "friedman1": 640,
    "friedman2": 450,
    "moons": 1100,
    "digits-conv": 600,
}
"""Configurations of each table that are trained, each with `SEEDS` seeds."""
SEEDS_RECORDED = 8
"""Seeds of each configuration where all there are were trained."""
VALIDATION = 2**20
"""Seed of the data that models are validated on; beyond those of the runs."""
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}

Values: TypeAlias = Mapping[str, Any]


@cache
def bundled(name: str) -> tuple[Array, Array]:
    """Rows and targets of a data set that comes with scikit-learn."""
    load = {"wine": load_wine, "diabetes": load_diabetes, "digits": load_digits}[name]
    x, y = load(return_X_y=True)
    return x, y


def wine(values: Values, seed: int) -> float:
    """Brier score of nearest neighbours on principal components, 60 wines to train on."""
    x, y = bundled("wine")
    x, x_valid, y, y_valid = train_test_split(x, y, train_size=60, random_state=seed, stratify=y)
    scaler = StandardScaler() if values["scaling"] == "standard" else MinMaxScaler()
    components = PCA(values["components"], svd_solver="full").fit(scaler.fit_transform(x))
    model = KNeighborsClassifier(
        values["neighbors"], weights=values["weights"], metric=values["metric"], algorithm="brute"
    ).fit(components.transform(scaler.transform(x)), y)
    predicted = model.predict_proba(components.transform(scaler.transform(x_valid)))
    return float(((predicted - np.eye(3)[y_valid]) ** 2).sum(axis=1).mean())


def diabetes(values: Values, seed: int) -> float:
    """Squared error of gradient boosting, relative to that of the mean; half to train on."""
    x, y = bundled("diabetes")
    x, x_valid, y, y_valid = train_test_split(x, y, train_size=0.5, random_state=seed)
    model = GradientBoostingRegressor(
        n_estimators=values["trees"],
        max_depth=values["depth"],
        learning_rate=values["lr"],
        subsample=values["subsample"],
        max_features=values["features"],
        min_samples_leaf=values["leaf"],
        random_state=seed,
    ).fit(x, y)
    return float(((model.predict(x_valid) - y_valid) ** 2).mean() / y_valid.var())


@cache
def cover() -> tuple[Array, Array]:
    """Five unequal classes; of thirty measurements ten only say on which side of a limit they
    are.
    """
    x, y = make_classification(
        3000,
        30,
        n_informative=12,
        n_redundant=6,
        n_classes=5,
        n_clusters_per_class=2,
        weights=[0.45, 0.3, 0.12, 0.08, 0.05],
        flip_y=0.05,
        class_sep=1.3,
        random_state=VALIDATION,
    )
    x[:, ::3] = x[:, ::3] > np.quantile(x[:, ::3], 0.8, axis=0)
    return x, y


def covertype_like(values: Values, seed: int) -> float:
    """Cross-entropy of a forest on 500 rows."""
    x, y = cover()
    rows = np.random.default_rng(seed).permutation(1500)[:500]
    model = {"forest": RandomForestClassifier, "extra": ExtraTreesClassifier}[values["model"]](
        values["trees"],
        criterion=values["criterion"],
        max_features=values["features"],
        max_samples=values["samples"],
        bootstrap=True,
        min_samples_leaf=values["leaf"],
        max_depth=values["depth"],
        class_weight="balanced" if values["balanced"] == "yes" else None,
        random_state=seed,
    ).fit(x[rows], y[rows])
    predicted = np.full((1500, 5), 1e-3)  # a class that a tree has not seen is not impossible
    predicted[:, model.classes_] += model.predict_proba(x[1500:])
    predicted /= predicted.sum(axis=1, keepdims=True)
    return float(log_loss(y[1500:], predicted, labels=range(5)))


def friedman1(values: Values, seed: int) -> float:
    """Squared error of support vector regression on 150 rows, relative to that of the mean."""
    x, y = make_friedman1(150, noise=1.0, random_state=seed)
    x_valid, y_valid = make_friedman1(1000, noise=1.0, random_state=VALIDATION)
    model = SVR(
        kernel=values["kernel"],
        C=values["c"],
        gamma=values["gamma"],
        epsilon=values["epsilon"],
        degree=values["degree"],
        coef0=values["offset"],
        max_iter=20_000,
    ).fit(2.0 * x - 1.0, y)
    error = ((model.predict(2.0 * x_valid - 1.0) - y_valid) ** 2).mean() / y_valid.var()
    return cut(float(error))


@cache
def resistances() -> list[torch.Tensor]:
    """Standardised measurements and targets, 300 to train and 1000 to validate on."""
    x, y = make_friedman2(1300, noise=60.0, random_state=VALIDATION)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std()
    parts = (x[:300], x[300:], y[:300], y[300:])
    return [torch.tensor(part, dtype=torch.float32) for part in parts]


def friedman2(values: Values, seed: int) -> float:
    """Squared error of a perceptron after eight epochs, relative to that of the mean."""
    torch.manual_seed(seed)
    inputs, x_valid, targets, y_valid = resistances()
    layers: list[nn.Module] = []
    for layer in range(values["layers"]):
        layers.append(nn.Linear(32 if layer else 4, 32))
        if values["norm"] != "none":
            layers.append(nn.BatchNorm1d(32) if values["norm"] == "batch" else nn.LayerNorm(32))
        layers += [ACTIVATIONS[values["act"]](), nn.Dropout(values["dropout"])]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=values["lr"], weight_decay=values["wd"])
    steps = 8 * (len(targets) // values["batch"])
    falls = {
        "constant": lambda step: 1.0,
        "cosine": lambda step: 0.5 + 0.5 * np.cos(np.pi * step / steps),
        "linear": lambda step: 1.0 - step / steps,
    }
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, falls[values["schedule"]])
    for _ in range(8):
        for rows in torch.randperm(len(targets)).split(values["batch"]):
            if len(rows) < values["batch"]:
                continue  # a batch of one has no variance to normalise by
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[rows])[:, 0], targets[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return cut(((model(x_valid)[:, 0] - y_valid) ** 2).mean().item() / y_valid.var().item())


def moons(values: Values, seed: int) -> float:
    """Cross-entropy of a logistic regression on random features, fitted by stochastic gradients."""
    x, y = make_moons(200, noise=0.3, random_state=seed)
    x_valid, y_valid = make_moons(1000, noise=0.3, random_state=VALIDATION)
    features = RBFSampler(gamma=values["gamma"], n_components=50, random_state=seed).fit(x)
    model = SGDClassifier(
        loss="log_loss",
        penalty=values["penalty"],
        learning_rate=values["schedule"],
        alpha=values["alpha"],
        eta0=values["eta"],
        max_iter=values["epochs"],
        tol=None,
        random_state=seed,
    )
    try:
        model.fit(features.transform(x), y)
    except ValueError:  # weights that are not finite
        return WORST
    return cut(float(log_loss(y_valid, model.predict_proba(features.transform(x_valid)))))


@cache
def images() -> list[torch.Tensor]:
    """Images and labels of digits, 600 to train and the others to validate on."""
    x, y = bundled("digits")
    pixels = (x / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(pixels, y, train_size=600, random_state=1, stratify=y)
    return [torch.tensor(part) for part in parts]


def digits_conv(values: Values, seed: int) -> float:
    """Cross-entropy of a convolutional network on 600 images after four epochs."""
    torch.manual_seed(seed)
    inputs, x_valid, labels, y_valid = images()
    wide, pool = values["channels"], nn.MaxPool2d if values["pool"] == "max" else nn.AvgPool2d
    model = nn.Sequential(
        nn.Conv2d(1, wide, 3, padding=1),
        nn.ReLU(),
        pool(2),
        nn.Conv2d(wide, 2 * wide, 3, padding=1),
        nn.ReLU(),
        pool(2),
        nn.Flatten(),
        nn.Linear(8 * wide, 10),
    )
    parameters, given = model.parameters(), {"lr": values["lr"], "weight_decay": values["wd"]}
    optimizer: torch.optim.Optimizer
    if values["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=0.9, **given)
    elif values["optimizer"] == "adam":
        optimizer = torch.optim.AdamW(parameters, **given)
    else:
        optimizer = torch.optim.RMSprop(parameters, **given)
    criterion = nn.CrossEntropyLoss(label_smoothing=values["smoothing"])
    for _ in range(4):
        for rows in torch.randperm(len(labels)).split(values["batch"]):
            optimizer.zero_grad()
            criterion(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return cut(nn.functional.cross_entropy(model(x_valid), y_valid).item())


def cut(loss: float) -> float:
    """What diverged is as bad as the worst."""
    return min(loss, WORST) if np.isfinite(loss) else WORST


TRAININGS: dict[str, Callable[[Values, int], float]] = {
    "wine": wine,
    "diabetes": diabetes,
    "covertype-like": covertype_like,
    "friedman1": friedman1,
    "friedman2": friedman2,
    "moons": moons,
    "digits-conv": digits_conv,
}


def make_seeded(table: Table) -> None:
    """Trains, fits and writes a table that answers for values in between."""
    cells, train, before = table.cells(), TRAININGS[table.name], time.process_time()
    unit = qmc.Sobol(len(table.search), seed=0).random(RUNS[table.name])
    rows = [
        {**cells[i % len(cells)], **values}
        for i, values in enumerate(from_unit(table.search, unit))
    ]
    losses = np.array(
        [[train(row, SEEDS * i + seed) for seed in range(SEEDS)] for i, row in enumerate(rows)]
    )
    features = table.features(rows).astype(np.float16)
    fit = fitted(features.astype(float), np.exp(np.log(losses).mean(axis=1)))
    good = np.argsort(answered(fit, features.astype(float)), kind="stable")[: len(rows) // 10]
    parts = {
        "features": features,
        "losses": losses.astype(np.float32),
        "noise": np.sqrt(np.log(losses[good]).var(axis=1, ddof=1).mean()),
        "optimum": np.array([best_in_cell(table, fit, cell) for cell in cells]),
        **{name: part.astype(np.float16) if part.ndim else part for name, part in fit.items()},
    }
    np.savez_compressed(table.path, **parts)
    print(
        f"{table.name}: {losses.size} runs in {time.process_time() - before:.0f} s, losses "
        f"{losses.min():.3f} to {losses.max():.3f}, a tenth below "
        f"{np.quantile(losses, 0.1):.3f}, noise {parts['noise']:.3f}, held-out variance explained "
        f"{parts['explained']:.3f}, {table.path.stat().st_size} bytes, optima "
        f"{np.round(parts['optimum'], 3).tolist()}",
        flush=True,
    )


def make_recorded(table: RecordedTable) -> None:
    """Trains and writes all configurations of a table."""
    train, before = TRAININGS[table.name], time.process_time()
    recorded = [
        [
            [train({**cell, **values}, seed) for seed in range(SEEDS_RECORDED)]
            for values in table.configurations
        ]
        for cell in table.cells()
    ]
    losses = np.array(recorded, dtype=np.float32)
    noise = np.sqrt(np.log(losses).var(axis=2, ddof=1).mean())
    np.savez_compressed(table.path, losses=losses, noise=noise)
    print(
        f"{table.name}: {losses.size} runs in {time.process_time() - before:.0f} s, losses "
        f"{losses.min():.3f} to {losses.max():.3f}, noise {noise:.3f}, {table.path.stat().st_size} "
        f"bytes, optima {losses.mean(axis=2).min(axis=1).round(3).tolist()}",
        flush=True,
    )


def make_families() -> None:
    """Finds and writes the optima of the random families."""
    before = time.process_time()
    found = {name: optima(drawn(name, 0)) for name in FAMILIES}
    np.savez_compressed(OPTIMA, **found)  # type: ignore[arg-type]
    print(f"families: {time.process_time() - before:.0f} s", flush=True)
    for name, each in found.items():
        print(f"  {name}: optima {each.round(3).tolist()}", flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or [*TRAININGS, OPTIMA.stem]
    if OPTIMA.stem in wanted:
        make_families()
    for table in FROZEN_TABLES:
        if table.name in wanted:
            if isinstance(table, RecordedTable):
                make_recorded(table)
            else:
                make_seeded(table)


if __name__ == "__main__":
    main()
