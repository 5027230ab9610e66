"""How often rules for the learning rate range test find the learning rates that train well.

    python -m tests.benchmarks.lr_range table      # MLPs on digits, SGD and AdamW: 48 runs
    python -m tests.benchmarks.lr_range held-out   # models and data on which no rule was chosen
    python -m tests.benchmarks.lr_range raw        # our losses against those of the neighbours
    python -m tests.benchmarks.lr_range cost       # what a test costs beyond its steps

`table` and `raw` also run Lightning 2.6.6 and torch-lr-finder 0.2.2 where these are installed (they
are not among the project's own: a virtual environment apart, with the project on PYTHONPATH).
fastai's rules are computed from their definitions on the same losses.

A good range is where the mean validation loss of 3 trainings of 5 epochs (at least 150 steps) is
within 25 % of the best one's, or within 1 % of what the loss fell by, on a grid of four learning
rates a decade. For losses that may be negative the first does not exist, and the second is 2 %.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import LRCurve, import_torchvision, lr_range_test
from orchestrator.training.curve_rules import moving_average
from tests.benchmarks.lr_range_models import LOSSES, MODELS, OPTIMIZERS

SWEEPS = ((1e-8, 1.0, 100), (1e-5, 10.0, 100), (1e-7, 10.0, 100), (1e-5, 10.0, 300))
GRID = [10 ** (k / 4) for k in range(-24, 7)]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """A training: its data, model, loss, optimizer and batch size."""

    data: str
    model: str
    optimizer: str
    batch: int = 32
    loss: str = "cross-entropy"
    shuffle: bool = True

    def __str__(self) -> str:
        return f"{self.data}, {self.model}, {self.optimizer}, batch {self.batch}, {self.loss}"

    @property
    def any_sign(self) -> bool:
        return self.loss in ("shifted", "gaussian nll")


TABLE = [Task("digits", model, opt) for opt in ("sgd 0.9", "adamw") for model in ("mlp", "mlp bn")]
HELD_OUT = [
    Task("digits", "lstm", "adamw", 64),
    Task("digits", "attention", "adamw", 64),
    Task("digits", "deep tanh", "sgd 0.9"),
    Task("digits", "deep tanh", "adamw", 128),
    Task("digits", "mlp", "sgd 0.9", 256),
    Task("digits", "mlp", "nesterov", 16),
    Task("digits", "mlp", "sgd 0.9", loss="shifted"),
    Task("digits", "mlp", "rmsprop", 64),
    Task("friedman", "regression", "adamw", 64, "gaussian nll"),
    Task("diabetes", "regression", "sgd 0.9", 32, "mse"),
    Task("classes", "dropout", "adamw", 128),
    Task("cancer", "mlp", "sgd", 16),
]


@cache
def arrays(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets to train on and to validate on, 4 to 1."""
    if name == "digits":
        x, y = datasets.load_digits(return_X_y=True)
        x = x / 16
    elif name == "cancer":
        x, y = datasets.load_breast_cancer(return_X_y=True)
        x = (x - x.mean(0)) / x.std(0)
    elif name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
        x, y = x / x.std(0), (y - y.mean()) / y.std()
    elif name == "friedman":
        x, y = datasets.make_friedman1(3000, noise=1.0, random_state=0)
        x, y = 2 * x - 1, (y - y.mean()) / y.std()
    else:
        x, y = datasets.make_classification(
            4000, 30, n_informative=12, n_classes=5, n_clusters_per_class=3, random_state=1
        )
        x = x / x.std(0)
    inputs = torch.tensor(x, dtype=torch.float32)
    targets = torch.tensor(y, dtype=torch.float32 if name in ("diabetes", "friedman") else None)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(7))
    inputs, targets = inputs[order], targets[order]
    cut = len(inputs) * 4 // 5
    return inputs[:cut], targets[:cut], inputs[cut:], targets[cut:]


def parts(task: Task, seed: int, lr: float = 1e-3) -> tuple[nn.Module, Any, Any, DataLoader[Any]]:
    torch.manual_seed(seed)
    inputs, targets, *_ = arrays(task.data)
    model = MODELS[task.model](inputs.shape[1], 1 + int(targets.max()))
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(inputs, targets),
        task.batch,
        shuffle=task.shuffle,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed + 100),
    )
    return model, OPTIMIZERS[task.optimizer](model.parameters(), lr), LOSSES[task.loss], loader


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def trained(task: Task, lr: float, seed: int) -> float:
    """Validation loss after 5 epochs."""
    model, optimizer, loss_fn, loader = parts(task, seed, lr)
    for inputs, targets in itertools.islice(endless(loader), max(5 * len(loader), 150)):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    return validation_loss(task, model)


def validation_loss(task: Task, model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(LOSSES[task.loss](model(arrays(task.data)[2]), arrays(task.data)[3]))
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Good:
    """The learning rates that train well, and the best of them."""

    low: float
    high: float
    best: float

    def __str__(self) -> str:
        return f"good from {self.low:.2g} to {self.high:.2g}, best {self.best:.2g}"


@cache
def good_range(task: Task) -> Good:
    losses = [statistics.fmean(trained(task, lr, seed) for seed in SEEDS) for lr in GRID]
    start = statistics.fmean(validation_loss(task, parts(task, seed)[0]) for seed in SEEDS)
    best = min(losses)
    near = 0.02 * (start - best) if task.any_sign else max(0.25 * best, 0.01 * (start - best))
    i = j = k = losses.index(best)
    while i > 0 and losses[i - 1] <= best + near:
        i -= 1
    while j + 1 < len(losses) and losses[j + 1] <= best + near:
        j += 1
    return Good(GRID[i], GRID[j], GRID[k])


def fastai_losses(curve: LRCurve) -> tuple[list[float], list[float]]:
    """The moving average (0.98) up to where it is four times its best, cut as fastai cuts it."""
    smooth = moving_average(curve.losses, 0.98)
    lowest = math.inf
    end = len(smooth)
    for i, loss in enumerate(smooth):
        lowest = min(lowest, loss)
        if not math.isfinite(loss) or loss > 4 * lowest:
            end = i + (1 if math.isfinite(loss) else 0)
            break
    first = end // 10
    return list(curve.lrs[first : end - 5]), list(smooth[first : end - 5])


def fastai_minimum(curve: LRCurve) -> float:
    lrs, losses = fastai_losses(curve)
    return lrs[losses.index(min(losses))] / 10


def fastai_steep(curve: LRCurve) -> float:
    """Where the loss falls most by the logarithm of the learning rate."""
    lrs, losses = fastai_losses(curve)
    slopes = [
        (b - a) / (math.log(y) - math.log(x))
        for a, b, x, y in zip(losses, losses[1:], lrs, lrs[1:], strict=False)
    ]
    return lrs[slopes.index(min(slopes))]


def fastai_valley(curve: LRCurve) -> float:
    """Half-way along the longest subsequence of falling losses, counted back from its end."""
    lrs, losses = fastai_losses(curve)
    length = [1] * len(losses)
    for i in range(len(losses)):
        length[i] = 1 + max((length[j] for j in range(i) if losses[j] > losses[i]), default=0)
    end = length.index(max(length))
    third = (end - (start := end - length[end])) / 3
    return lrs[start + int(third) + int(third / 2)]


def torch_lr_finder(task: Task, seed: int, sweep: tuple[float, float, int], **raw: Any) -> Any:
    finder_class = importlib.import_module("torch_lr_finder").LRFinder
    start, end, steps = sweep
    model, optimizer, loss_fn, loader = parts(task, seed, start)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        finder = finder_class(model, optimizer, loss_fn)
        finder.range_test(loader, end_lr=end, num_iter=steps, **raw)
    lrs, losses = finder.history["lr"], finder.history["loss"]
    if raw:
        return lrs, losses
    kept, smooth = lrs[10:-5], losses[10:-5]
    if len(kept) < 2:
        return math.nan
    import numpy as np

    return kept[int(np.argmin(np.gradient(np.array(smooth))))]


def lightning(task: Task, seed: int, sweep: tuple[float, float, int], raw: bool = False) -> Any:
    pl = importlib.import_module("lightning.pytorch")
    tuner = importlib.import_module("lightning.pytorch.tuner").Tuner
    base: Any = pl.LightningModule
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start, end, steps = sweep
    model, optimizer, loss_fn, loader = parts(task, seed, start)
    measured: list[tuple[float, float]] = []

    class Module(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = model, start

        def training_step(self, batch: Any) -> Any:
            loss = loss_fn(self.model(batch[0]), batch[1])
            measured.append((self.optimizers().param_groups[0]["lr"], loss.item()))
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        found = tuner(trainer).lr_find(
            Module(), loader, min_lr=start, max_lr=end, num_training=steps,
            early_stop_threshold=None if raw else 4.0, update_attr=False,
        )  # fmt: skip
    if raw:
        return [lr for lr, _ in measured], [loss for _, loss in measured]
    suggestion = found.suggestion()
    return math.nan if suggestion is None else suggestion


def ours(task: Task, seed: int, sweep: tuple[float, float, int], repeats: int = 3) -> LRCurve:
    start, end, steps = sweep
    return lr_range_test(*parts(task, seed), start=start, end=end, steps=steps, repeats=repeats)


def one_curve(rule: Callable[[LRCurve], float]) -> Callable[..., float]:
    def run(task: Task, seed: int, sweep: tuple[float, float, int]) -> float:
        start, end, steps = sweep
        # Nobody else stops as late as this.
        curve = lr_range_test(
            *parts(task, seed), start=start, end=end, steps=steps, repeats=1, divergence=20
        )
        return rule(curve)

    return run


def installed(name: str) -> bool:
    with contextlib.suppress(ImportError):
        import_torchvision()  # a build of torchvision that does not suit torch stops Lightning
    try:
        importlib.import_module(name)
    except ImportError:
        print(f"({name} is not installed)")
        return False
    return True


def rules_of_others() -> dict[str, Callable[..., float]]:
    rules: dict[str, Callable[..., float]] = {}
    if installed("lightning"):
        rules["Lightning"] = lightning
    if installed("torch_lr_finder"):
        rules["torch-lr-finder"] = torch_lr_finder
    rules["fastai valley"] = one_curve(fastai_valley)
    rules["fastai minimum / 10"] = one_curve(fastai_minimum)
    rules["fastai steep"] = one_curve(fastai_steep)
    return rules


def off(value: float, good: Good) -> float:
    """By what factor a learning rate lies outside the good ones; below 1 if it is too low."""
    slack = 1 + 1e-9
    if value * slack < good.low:
        return value / good.low
    return value / good.high if value > good.high * slack else 1.0


def report_numbers(name: str, values: Sequence[tuple[float, Good]]) -> None:
    factors = [off(value, good) for value, good in values if not math.isnan(value)]
    below = [1 / factor for factor in factors if factor < 1]
    above = [factor for factor in factors if factor > 1]
    none = len(values) - len(factors)
    print(
        f"{name:22} in {factors.count(1.0):3} below {spread(below):18} above {spread(above):18}"
        + (f" none {none}" if none else "")
    )


def spread(factors: list[float]) -> str:
    if not factors:
        return "0"
    return f"{len(factors)} ({statistics.median(factors):.1f}x, {max(factors):.3g}x)"


def report_ours(runs: Sequence[tuple[LRCurve, Good]]) -> None:
    readings = [(curve, good) for curve, good in runs if curve.reason is None]
    report_numbers("ours, suggestion", [(c.suggestion().value, good) for c, good in readings])
    holds_best = overlaps = holds_all = middle = probed = 0
    widest = 0.0
    for curve, good in readings:
        low, high = curve.bounds()
        widest = max(widest, math.log10(high / low))
        holds_best += low <= good.best <= high
        probed += low / 2 <= good.best <= 2 * high
        overlaps += low <= good.high and good.low <= high
        holds_all += low <= good.low * (1 + 1e-9) and good.high <= high * (1 + 1e-9)
        middle += off(math.sqrt(low * high), good) == 1.0
    print(
        f"ours, interval of {widest:.2f} decades, of {len(runs)} runs: holds the best learning "
        f"rate {holds_best} (with the bounds of a probe {probed}), overlaps the good range "
        f"{overlaps}, holds all of it {holds_all}, "
        f"its middle is good {middle}, no answer {len(runs) - len(readings)}"
    )
    for curve, _ in runs:
        if curve.reason is not None:
            print(f"    no answer: {curve.reason}")


def table() -> None:
    results: dict[str, list[tuple[float, Good]]] = {}
    own = []
    others = rules_of_others()
    for task in TABLE:
        good = good_range(task)
        print(
            f"{task}: good from {good.low:.2g} to {good.high:.2g}, best {good.best:.2g}", flush=True
        )
        for seed, sweep in itertools.product(SEEDS, SWEEPS):
            own.append((ours(task, seed, sweep), good))
            for name, rule in others.items():
                results.setdefault(name, []).append((rule(task, seed, sweep), good))
    for name, values in results.items():
        report_numbers(name, values)
    report_ours(own)


def held_out() -> None:
    own = []
    for task in HELD_OUT:
        good = good_range(task)
        for seed, sweep in itertools.product(SEEDS, SWEEPS[1:3]):
            own.append((ours(task, seed, sweep), good))
        print(
            f"{task}: good from {good.low:.2g} to {good.high:.2g}, best {good.best:.2g}", flush=True
        )
        report_ours(own[-6:])
    print("all:")
    report_ours(own)


def raw() -> None:
    """The same losses at the same learning rates, from the same model, seed and batches.

    In a fixed order, because Lightning draws from a loader's generator between epochs.
    """
    task, seed, sweep = replace(TABLE[0], shuffle=False), 0, SWEEPS[2]
    for name, peer in (("torch_lr_finder", torch_lr_finder), ("lightning", lightning)):
        if not installed(name):
            continue
        options: dict[str, Any] = (
            {"raw": True} if name == "lightning" else {"smooth_f": 0, "diverge_th": 1e9}
        )
        lrs, losses = peer(task, seed, sweep, **options)
        own = at_rates(task, seed, lrs)
        pairs = list(zip(own.losses, losses, strict=False))
        print(
            f"{name}: {len(pairs)} losses at its learning rates ({lrs[0]:.3g}, {lrs[1]:.3g}, … "
            f"{lrs[-1]:.3g}); largest difference {max(abs(a - b) for a, b in pairs):.2g}"
        )
        if name == "torch_lr_finder":
            same = lr_range_test(
                *parts(task, seed, sweep[0]),
                start=sweep[0],
                end=sweep[1],
                steps=sweep[2],
                repeats=1,
            )
            most = max(abs(a / b - 1) for a, b in zip(same.lrs, lrs, strict=False))
            print(
                f"    our own learning rates differ from its by a factor of at most 1 + {most:.1g}"
            )


def at_rates(task: Task, seed: int, lrs: list[float]) -> LRCurve:
    """Our test at given learning rates, of which a neighbour may have other ones."""
    with mock.patch("orchestrator.training.lr_range._rate_at", return_value=lrs.__getitem__):
        return lr_range_test(*parts(task, seed, lrs[0]), steps=len(lrs), repeats=1, divergence=1e9)


def cost() -> None:
    """CPU time of a test of 100 steps beyond that of a bare loop of as many, on one thread."""
    for batch in (16, 64):
        task = Task("digits", "cnn", "adamw", batch)
        training = parts(task, 0, 1e-4)
        bare_loop(*training), whole_test(*training)
        pairs = [(bare_loop(*training), whole_test(*training)) for _ in range(30)]
        loop, test = (statistics.median(times) for times in zip(*pairs, strict=True))
        more = statistics.median(b / a for a, b in pairs) - 1
        print(f"{task}: bare loop {1e3 * loop:.0f} ms, test {1e3 * test:.0f} ms: {more:+.1%}")


def bare_loop(
    model: nn.Module, optimizer: Any, loss_fn: Callable[..., Any], loader: DataLoader[Any]
) -> float:
    began = time.process_time()
    losses = []
    for inputs, targets in itertools.islice(endless(loader), 100):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return time.process_time() - began


def whole_test(
    model: nn.Module, optimizer: Any, loss_fn: Callable[..., Any], loader: DataLoader[Any]
) -> float:
    began = time.process_time()
    curve = lr_range_test(model, optimizer, loss_fn, loader, start=1e-7, end=1e-4, repeats=1)
    assert len(curve.lrs) == 100
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = {"table": table, "held-out": held_out, "raw": raw, "cost": cost}
    parser.add_argument("what", choices=list(commands))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    commands[chosen.what]()
