"""The probe of the learning rate: bounds from a curve that is stored, or no bounds and a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from orchestrator.training import LRCurve
from orchestrator.training.probes import lr_range

torch.set_num_threads(1)

MSE = nn.functional.mse_loss


class Trial:
    """Keeps what artifacts held when they were logged."""

    def __init__(self) -> None:
        self.artifacts: dict[str, str] = {}

    def log_artifact(self, path: Path) -> str:
        self.artifacts[path.name] = path.read_text(encoding="utf-8")
        return path.name


def build(cfg: Any, trial: Any, loss_fn: Any = MSE) -> dict[str, Any]:
    torch.manual_seed(0)
    numbers = torch.Generator().manual_seed(1)
    inputs = torch.randn(128, 4, generator=numbers)
    targets = 3 * inputs[:, :1] - inputs[:, 1:2]
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=cfg["lr"], momentum=0.9),
        "loss_fn": loss_fn,
        "batches": list(zip(inputs.split(16), targets.split(16), strict=True)),
    }


CFG = {"lr": 0.1}


def test_bounds_are_those_of_the_stored_curve_and_wider() -> None:
    trial = Trial()
    finding = lr_range(CFG, trial, build=build, parameter="optim.lr", widen=3)
    json.dumps(finding, allow_nan=False)
    curve = LRCurve.from_dict(json.loads(trial.artifacts["lr_range.json"]))
    facts = finding["facts"]
    assert (facts["low"], facts["high"]) == curve.bounds()
    assert facts["suggestion"] == curve.suggestion().value
    assert finding["bounds"] == {"optim.lr": [facts["low"] / 3, facts["high"] * 3]}
    assert facts["note"] is None
    assert facts["steps"] == sum(len(sweep.lrs) for sweep in curve.sweeps) <= 300
    assert len(facts["ended"]) == 3
    assert set(facts) == {"suggestion", "low", "high", "note", "steps", "seconds", "ended"}


def test_the_bounds_hold_a_learning_rate_that_trains_well() -> None:
    finding = lr_range(CFG, Trial(), build=build, parameter="lr")
    low, high = finding["bounds"]["lr"]
    assert math.log10(high / low) < 2.2

    def trained(lr: float) -> float:
        parts = build({"lr": lr}, None)
        for _ in range(10):
            for inputs, targets in parts["batches"]:
                loss = MSE(parts["model"](inputs), targets)
                parts["optimizer"].zero_grad()
                loss.backward()
                parts["optimizer"].step()
        return loss.item() if math.isfinite(loss.item()) else math.inf

    losses = {lr: trained(lr) for lr in (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)}
    assert low < min(losses, key=losses.__getitem__) < high


def test_a_learning_rate_that_is_scaled_by_the_build_is_scaled_back() -> None:
    plain = lr_range(CFG, Trial(), build=build, parameter="lr", repeats=1)
    cfg = {"optim": {"base_lr": 0.4}, "lr": 0.1}
    scaled = lr_range(cfg, Trial(), build=build, parameter="optim.base_lr", repeats=1)
    assert scaled["facts"]["scale"] == 0.25
    assert scaled["facts"]["suggestion"] == plain["facts"]["suggestion"]
    assert scaled["bounds"]["optim.base_lr"] == [4 * bound for bound in plain["bounds"]["lr"]]


def test_without_an_answer_there_are_no_bounds_but_a_reason() -> None:
    def noise(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum() + torch.rand(())

    trial = Trial()
    finding = lr_range(
        CFG, trial, build=lambda cfg, trial: build(cfg, trial, noise), parameter="lr", steps=60
    )
    assert "bounds" not in finding
    assert "the curve is flat" in finding["facts"]["reason"]
    assert "suggestion" not in finding["facts"]
    assert "lr_range.json" in trial.artifacts


def test_an_edge_beyond_the_sweep_leaves_all_of_it_open() -> None:
    options: dict[str, Any] = {"build": build, "parameter": "lr", "steps": 100, "start": 1e-6}
    edge = lr_range(CFG, Trial(), **options)["facts"]["suggestion"] * 10**0.8
    finding = lr_range(CFG, Trial(), **options, end=0.75 * edge)
    assert "may lie above" in finding["facts"]["note"]
    assert finding["bounds"]["lr"][1] >= 0.75 * edge


def test_its_picture_shows_every_sweep_and_what_was_read() -> None:
    trial = Trial()
    facts = lr_range(CFG, trial, build=build, parameter="optim.lr")["facts"]
    picture = ElementTree.fromstring(trial.artifacts["lr_range.svg"])
    of = "{http://www.w3.org/2000/svg}"
    lines = [line.get("class") for line in picture.iter(f"{of}polyline")]
    assert (lines.count("raw"), lines.count("mean")) == (3, 3)
    said = [text.text for text in picture.iter(f"{of}text")]
    assert {"steepest", "minimum", "edge", "learning rate", "loss", "1e-3"} <= set(said)
    assert any(str(text).startswith(f"begin at {facts['suggestion']:.2g};") for text in said)
    uprights = [line for line in picture.iter(f"{of}line") if line.get("class") == "suggestion"]
    (band,) = [rect for rect in picture.iter(f"{of}rect") if rect.get("class") == "range"]
    left, width = float(band.get("x", 0)), float(band.get("width", 0))
    assert left < float(uprights[0].get("x1", 0)) < left + width


def test_a_curve_that_says_nothing_has_a_picture_too() -> None:
    trial = Trial()
    cfg = {"lr": 0.1}

    def flat(cfg: Any, trial: Any) -> Any:
        parts = build(cfg, trial)
        return {**parts, "loss_fn": lambda outputs, targets: 0.0 * outputs.sum() + 1.0}

    reason = lr_range(cfg, trial, build=flat, parameter="lr")["facts"]["reason"]
    picture = ElementTree.fromstring(trial.artifacts["lr_range.svg"])
    said = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert f"no suggestion: {reason}" in said


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widen": 0.5}, ValueError, r"widen=0\.5: must be at least 1"),
        ({"parameter": 3}, TypeError, "parameter=3: must be the path of a learning rate"),
        ({"start": 2, "end": 1}, ValueError, r"end=1\.0: must be above start=2\.0"),
        ({"build": lambda *_: None}, TypeError, "build returned a NoneType"),
    ],
)
def test_bad_options_are_one_clear_error(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lr_range(CFG, Trial(), **{"build": build, "parameter": "lr", **options})
