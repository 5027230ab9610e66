"""The tables on which probing is judged are what torch trains, and the benchmark counts what it
says.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks import probes
from tests.benchmarks.probed_tables import BOUNDS, BUILDING, FILE, HELD_OUT, LRS, Probed
from tests.benchmarks.trainings import Networks, Optimiser, Shape, patches, rows_of_steps

pytestmark = pytest.mark.nightly
TABLES = (*BUILDING, *HELD_OUT)


class Plain(nn.Module):
    """A network of torch's own layers with the weights of one of `Networks`."""

    def __init__(self, shape: Shape, weights: Tensor) -> None:
        super().__init__()
        parts = iter(weights.detach().clone().split(shape.sizes))
        layers: list[nn.Module] = []
        last = len(shape.layers) - 1
        for place, (inputs, outputs) in enumerate(shape.layers):
            linear = nn.Linear(inputs, outputs)
            linear.weight.data = next(parts).reshape(inputs, outputs).T.clone()
            linear.bias.data = next(parts)
            layers.append(linear)
            if place < last:
                if shape.norm != "none":
                    kind = nn.BatchNorm1d if shape.norm == "batch" else nn.LayerNorm
                    norm = kind(outputs)
                    norm.weight.data, norm.bias.data = next(parts), next(parts)
                    layers.append(norm)
                layers.append(
                    {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[shape.activation]()
                )
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize(
    ("norm", "activation", "optimizer"),
    [
        ("none", "relu", "rmsprop"),
        ("batch", "tanh", "sgd"),  # with AdamW a bias before the norm moves by noise alone
        ("layer", "gelu", "adamw"),
    ],
)
def test_networks_side_by_side_learn_what_torch_learns_one_by_one(
    norm: str, activation: str, optimizer: str
) -> None:
    torch.manual_seed(0)
    shape = Shape(5, 3, (7, 6), activation=activation, norm=norm)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    networks = Networks(shape, [1, 2, 2])
    lrs, decays = torch.tensor([[0.1], [0.01], [0.001]]), torch.tensor([[0.0], [0.1], [0.01]])
    momenta = torch.tensor([[0.0], [0.9], [0.5]])
    alone = [Plain(shape, row) for row in networks.weights]
    single = []
    for network, lr, decay, momentum in zip(alone, lrs, decays, momenta, strict=True):
        options = {"lr": float(lr), "weight_decay": float(decay)}
        if optimizer != "adamw":
            options["momentum"] = float(momentum)
        single.append(OPTIMIZERS[optimizer](network.parameters(), **options))
    ours = Optimiser(optimizer, lrs, momenta, decays)
    for rows in rows_of_steps(40, 10, 9, seed=0):
        networks.weights.grad = None
        loss = sum(
            nn.functional.cross_entropy(outputs, y[rows])
            for outputs in networks(x[rows].expand(3, -1, -1))
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        ours.step(networks.weights, 1.0)
        for network, optimizer_of_one in zip(alone, single, strict=True):
            optimizer_of_one.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer_of_one.step()
    networks.eval()
    for place, network in enumerate(alone):
        expected = network.eval()(x)
        found = networks(x.expand(3, -1, -1))[place]
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_images_cut_up_are_convolved() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 64)
    networks = Networks(Shape(144, 3, channels=(2, 5)), [0])
    parts = networks.weights[0].split(networks.shape.sizes)
    first = nn.functional.conv2d(
        images.reshape(4, 1, 8, 8),
        parts[0].reshape(1, 3, 3, 2).permute(3, 0, 1, 2),
        parts[1],
        stride=2,
        padding=1,
    ).relu()
    second = nn.functional.conv2d(
        first, parts[2].reshape(2, 2, 2, 5).permute(3, 2, 0, 1), parts[3], stride=2
    ).relu()
    expected = second.mean(dim=(2, 3)) @ parts[4].reshape(5, 3) + parts[5]
    assert torch.allclose(networks(patches(images)[None])[0], expected, atol=1e-5)


def test_a_dropout_of_its_own_drops_that_share_of_a_networks_values_in_training_only() -> None:
    networks = Networks(Shape(1, 1, (1000,)), [0, 0], torch.tensor([[0.0], [0.6]]))
    hidden = networks._hidden(torch.ones(2, 1, 1000), iter(()), 0)
    assert (hidden[0] == 1.0).all()
    assert hidden[1].count_nonzero() == pytest.approx(400, abs=60)
    assert hidden[1].max() == pytest.approx(2.5)
    assert (networks.eval()._hidden(torch.ones(2, 1, 1000), iter(()), 0) == 1.0).all()


def test_the_batches_of_an_epoch_are_of_different_rows() -> None:
    rows = rows_of_steps(25, 8, 7, seed=3)
    assert rows.shape == (7, 8)
    for epoch in (rows[:3], rows[3:6]):
        assert len(set(epoch.flatten().tolist())) == 24
    assert not torch.equal(rows[:3], rows[3:6])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_answers_with_what_was_recorded_and_never_better_than_its_optimum(
    table: Probed,
) -> None:
    task = table.problem()
    losses = table.losses
    assert losses.shape == (len(table.cells), len(LRS), len(table.others), 3)
    assert 0.0 < losses.min() < 0.9 < losses.max() <= 3.0
    rng = np.random.default_rng(0)
    for cell, i, j in itertools.product(range(len(table.cells)), (0, 9, 21), (0, 3)):
        values = {**table.cells[cell], "lr": LRS[i], table.other.path: table.others[j]}
        mean = float(np.exp(np.log(losses[cell, i, j]).mean()))
        assert task.loss(values) == pytest.approx(mean, rel=1e-6)
        assert task.observed(values, 0.0) == pytest.approx(mean, rel=1e-6)
        spread = np.log(losses[cell, i, j]).std(ddof=1)
        assert np.log(task.observed(values, 2.0) / mean) == pytest.approx(2.0 * spread, abs=1e-6)
    for place, settings in enumerate(table.cells):
        lr, other, least = table.best(place)
        best = {**settings, "lr": lr, table.other.path: other}
        assert task.loss(best) == pytest.approx(least, rel=1e-6)
        for _ in range(50):
            low, high = table.other.low or 0.0, table.other.high or 0.0
            drawn = (
                low * (high / low) ** rng.random() if table.other.log else rng.uniform(low, high)
            )
            values = {**settings, "lr": 10.0 ** rng.uniform(-6, 1), table.other.path: drawn}
            assert task.loss(values) >= least - 1e-9
        bounds = table.bounds[place]
        assert bounds is None or 1e-7 < bounds[0] < bounds[1] < 100.0
        assert 60 < table.probe_steps[place] <= 300


def test_the_files_are_small() -> None:
    assert FILE.stat().st_size + BOUNDS.stat().st_size < 300_000


def test_a_run_prints_what_probes_change_and_keeps_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--tables", "digits-sgd", "clusters", "--samplers", "random", "--seeds=3", "--at", "2"]
    argv += ["4", f"--lines={tmp_path / 'runs'}"]
    probes.main(argv)
    said = capsys.readouterr().out
    first, second = said.split("\n\n")
    rows = [line.split("  ") for line in first.splitlines()[1:]]
    assert [(row[0], row[1].strip()) for row in rows] == [("random", "soft")] * 4 + [
        ("random", "hard")
    ] * 4
    tables = [probes.TABLES[name] for name in ("digits-sgd", "clusters")]
    beyond = [
        cell
        for table in tables
        for cell, found in enumerate(table.bounds)
        if found and not found[0] <= table.best(cell)[0] <= found[1]
    ]
    assert f"{len(beyond)} of 12 cells have their optimum outside" in second
    assert len(second.splitlines()) == 2 + len(beyond)
    monkeypatch.setattr(probes, "played", None)
    probes.main(argv)
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("arm", "left"), [("hard", False), ("soft", True)])
def test_hard_bounds_are_never_left_and_soft_ones_are(
    arm: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, task = probes.TABLES["clusters"], probes.problem("clusters")
    run, seen = probes.Run("clusters", "random", arm, 0.0, 0), []

    def loss(values: Any) -> float:
        cell = {axis.path: values[axis.path] for axis in table.grid}
        seen.append((table.bounds[table.cells.index(cell)], values["lr"]))
        return task.loss(values)

    true = probes.played(run, 8).true
    monkeypatch.setattr(probes, "problem", lambda name: replace(task, loss=loss))
    assert probes.played(run, 8).true == true
    assert len(seen) == len(true) == 60
    outside = [found is not None and not found[0] <= lr <= found[1] for found, lr in seen]
    assert any(outside) == left


def test_device_time_counts_probes_before_the_first_trial_of_each_cell() -> None:
    table = probes.TABLES["clusters"]
    n = len(table.cells)
    runs = [
        probes.Run("clusters", "random", arm, 0.0, 0, (1.0,) * 2 * n) for arm in ("none", "soft")
    ]
    without, probed = (probes.Played(table, [run]) for run in runs)
    assert without.time == pytest.approx(np.arange(1.0, 2 * n + 1))
    cost = np.array(table.probe_steps) / table.steps
    assert probed.time[:n] == pytest.approx(np.arange(1.0, n + 1) + np.cumsum(cost))
    assert probed.time[-1] == pytest.approx(2 * n + cost.sum())
    assert probed.after(probed.time[3]) == 3
    assert probed.after(probed.time[3] - 0.01) == 2


def test_a_time_is_where_the_regret_of_the_end_was_reached() -> None:
    table = probes.TABLES["clusters"]
    n = len(table.cells)
    best = [table.best(cell)[2] for cell in range(n)]
    slow = [b + gap for gap in (1.0, 0.5, 0.4, 0.2) for b in best]
    fast = [b + gap for gap in (0.3, 0.1, 0.1, 0.1) for b in best]
    one = probes.Played(table, [probes.Run("clusters", "random", "none", 0.0, 0, tuple(slow))])
    two = probes.Played(table, [probes.Run("clusters", "random", "soft", 0.0, 0, tuple(fast))])
    found = probes.compared(two, one, 4, "each cell")
    # The mean over cells falls below 0.2 once more than half of the second round has ended.
    wanted = two.time[n + n // 2 - 1] / one.time[-1]
    assert found.time[0] == pytest.approx(wanted)
    assert found.regret[0] == pytest.approx(0.5)
    assert (found.cells < 1.0).all()
    assert probes.compared(one, two, 4, "each cell").time[0] == probes.NOT_REACHED
