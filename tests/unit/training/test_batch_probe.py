"""The probe of a cell's batch size: what fits, what does not, and what is foretold."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.training import SAM, find_batch_size
from orchestrator.training.batch_probe import batch_fits

AXIS = "data.batch_size"
TRIAL = SimpleNamespace(device="cpu", seed=1, number=0)


def config(batch_size: int = 64, **more: Any) -> Any:
    return OmegaConf.create({"data": {"batch_size": batch_size}, **more})


def build(cfg: Any, trial: Any) -> dict[str, Any]:
    """A classifier whose activations outweigh its weights from a batch of about ten on."""
    torch.manual_seed(trial.seed)
    layers: list[nn.Module] = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)]
    if cfg.get("norm"):
        layers.insert(1, nn.BatchNorm1d(64))
    model = nn.Sequential(*layers).to(trial.device)
    size = cfg.data.batch_size
    data = torch.utils.data.TensorDataset(torch.randn(256, 8), torch.zeros(256, dtype=torch.long))
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loss_fn": cross_entropy,
        "batches": torch.utils.data.DataLoader(data, batch_size=size, shuffle=True),
    }


def probed(cfg: Any, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"build": build, "axis": AXIS, "limit_gb": 1e-3} | changes
    finding = batch_fits(cfg, TRIAL, **arguments)
    assert set(finding) <= {"infeasible", "largest", "facts"}
    json.dumps(finding)
    return finding


def test_a_batch_that_fits_leaves_the_cell_open_and_says_what_would_fit() -> None:
    finding = probed(config(64))
    facts = finding["facts"]
    assert "infeasible" not in finding
    assert list(facts["peak_bytes"]) == ["8", "16", "32", "64"]
    assert facts["limit_bytes"] == 900_000
    assert facts["samples_per_s"] > 0
    assert facts["steps"] == 4 * 2 + 3
    assert facts["misfit"] < 0.01

    parts = build(config(), TRIAL)

    def step(size: int) -> None:
        parts["optimizer"].zero_grad()
        inputs, targets = torch.randn(size, 8), torch.zeros(size, dtype=torch.long)
        cross_entropy(parts["model"](inputs), targets).backward()
        parts["optimizer"].step()

    found = find_batch_size(
        step, model=parts["model"], optimizer=parts["optimizer"], limit_bytes=1_000_000
    )
    assert finding["largest"][AXIS] == pytest.approx(found.batch_size, rel=0.1)
    assert found.batch_size > 10 * 64


def test_a_batch_that_does_not_fit_closes_the_cell_and_foretells_the_largest() -> None:
    largest = probed(config(64))["largest"][AXIS]
    finding = probed(config(16_384))
    assert finding["infeasible"].startswith("data.batch_size=16384 does not fit: not even 2048 ")
    assert "over the limit of 0.90 MB" in finding["infeasible"]
    assert "largest" not in finding  # nothing ran from which to foretell it
    finding = probed(config(4096))
    assert finding["largest"][AXIS] == pytest.approx(largest, rel=0.1)
    assert f"the largest that does is about {finding['largest'][AXIS]}" in finding["infeasible"]
    assert "samples_per_s" not in finding["facts"]


def test_the_data_set_need_not_hold_the_batch() -> None:
    finding = probed(config(512), limit_gb=1.0)
    assert "infeasible" not in finding
    assert list(finding["facts"]["peak_bytes"]) == ["64", "128", "256", "512"]


def test_a_model_that_does_not_fit_is_infeasible_before_the_first_step() -> None:
    def too_large(cfg: Any, trial: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    finding = probed(config(), build=too_large)
    assert finding["infeasible"].startswith("memory ran out before the first step: CUDA out of mem")
    assert "largest" not in finding


def test_a_batch_that_batch_norm_refuses_is_infeasible() -> None:
    assert "infeasible" not in probed(config(4, norm=True))
    finding = probed(config(1, norm=True))
    assert finding["infeasible"].startswith("data.batch_size=1: Expected more than 1 value per ch")


def test_too_few_samples_of_each_class_are_warned_of() -> None:
    facts = probed(config(8), n_classes=35)["facts"]
    assert "the rule of thumb is 2 to 3, a batch of 128" in facts["warning"]
    assert facts["samples_per_class"] == pytest.approx(8 / 35)
    assert "warning" not in probed(config(8), n_classes=4)["facts"]


def test_memory_that_does_not_grow_foretells_no_largest() -> None:
    def constant(cfg: Any, trial: Any) -> dict[str, Any]:
        model = nn.Linear(1, 1)

        def step(model: nn.Module, batch: Any) -> Tensor:
            loss: Tensor = model(torch.ones(1, 1)).sum()
            return loss

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "optimizer": optimizer, "batches": [{"name": "x"}], "step": step}

    finding = probed(config(64), build=constant)
    assert list(finding) == ["facts"]
    assert list(finding["facts"]["peak_bytes"]) == ["64"]  # what cannot be cut runs whole


def test_sam_takes_both_passes_of_each_step() -> None:
    passes = []

    def sharp(cfg: Any, trial: Any) -> Any:
        parts = build(cfg, trial)
        model = parts["model"]
        model.register_forward_hook(lambda *_: passes.append(1))
        return parts | {"optimizer": SAM(parts["optimizer"], model)}

    finding = probed(config(8), build=sharp)
    assert "infeasible" not in finding
    assert len(passes) == 2 * finding["facts"]["steps"]


def test_build_may_be_a_dotted_name() -> None:
    with pytest.raises(ValueError, match=r"build='nowhere.build': there is no such function \(No"):
        probed(config(), build="nowhere.build")
    with pytest.raises(ValueError, match=r"build='json.nothing': there is no such function \(mod"):
        probed(config(), build="json.nothing")
    with pytest.raises(ValueError, match="build='build': must be the dotted name of a function"):
        probed(config(), build="build")
    with pytest.raises(TypeError, match=r"build='json.__name__': str cannot be called"):
        probed(config(), build="json.__name__")
    with pytest.raises(TypeError, match="build=3: must be a function or its dotted name"):
        probed(config(), build=3)


@pytest.mark.parametrize(
    ("cfg", "changes", "error", "message"),
    [
        (config(), {"axis": "data.size"}, ValueError, "axis='data.size': the configuration has no"),
        (config(), {"axis": "data.batch_size.x"}, ValueError, "the configuration has no 'x' there"),
        (config(), {"axis": ""}, TypeError, "axis='': must be the path of the batch size"),
        (config(0), {}, ValueError, "data.batch_size=0: must be at least 1"),
        (config(1.5), {}, TypeError, "data.batch_size=1.5: must be a whole number"),  # type: ignore[arg-type]
        (config(), {"limit_gb": 0}, ValueError, "limit_gb=0: must be above 0"),
        (config(), {"margin": 1}, ValueError, "margin=1: must be from 0 to below 1"),
        (config(), {"n_classes": 1}, ValueError, "n_classes=1: must be at least 2"),
    ],
)
def test_bad_arguments(
    cfg: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        probed(cfg, **changes)


def test_batches_that_end_before_the_first_are_an_error() -> None:
    def empty(cfg: Any, trial: Any) -> Any:
        return build(cfg, trial) | {"batches": []}

    with pytest.raises(ValueError, match="batches: there is none"):
        probed(config(), build=empty)
    with pytest.raises(ZeroDivisionError):
        probed(config(), build=lambda cfg, trial: 1 // 0)
