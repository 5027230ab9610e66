"""The example objective: it learns, reports, stops, prunes, and goes on from its checkpoint as if
nothing had happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from orchestrator.runner import TrialPruned
from orchestrator.runner.files import Checkpoints

pytestmark = pytest.mark.xdist_group("torch")  # one process imports it, not all


class FakeTrial:
    """A trial without a study: keeps what is reported, and asks for an early end after given
    epochs.
    """

    device = "cpu"
    seed = 7

    def __init__(
        self, checkpoint_dir: Path, *, stop_after: int | None = None, prune_after: int | None = None
    ) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.reports: dict[int, float] = {}
        self._stop_after, self._prune_after = stop_after, prune_after

    def report(self, value: float, step: int) -> None:
        self.reports[step] = value

    def should_prune(self) -> bool:
        return self._prune_after is not None and max(self.reports) >= self._prune_after

    def should_stop(self) -> bool:
        return self._stop_after is not None and max(self.reports) >= self._stop_after


def config(**changes: Any) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "data": {"batch_size": 128},
            "model": {"hidden_units": 64, "depth": 1, "dropout": 0.1, "activation": "relu"},
            "optim": {"lr": 0.03, "weight_decay": 1e-4},
            "train": {"epochs": 12},
        }
    )
    for path, value in changes.items():
        OmegaConf.update(cfg, path.replace("__", "."), value)
    return cfg


def train(cfg: DictConfig, trial: FakeTrial) -> dict[str, float] | None:
    # torch takes seconds to import: not while the tests are collected
    from orchestrator.examples import digits

    return digits.train(cfg, trial)  # type: ignore[arg-type]


def test_it_learns_the_digits(tmp_path: Path) -> None:
    trial = FakeTrial(tmp_path)
    result = train(config(), trial)
    assert result is not None
    assert result["val_accuracy"] >= 0.96
    assert result["val_loss"] < 0.2
    assert result["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert list(trial.reports) == list(range(12))
    assert trial.reports[11] == result["val_accuracy"]


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_model_of_the_search_space_trains(
    tmp_path: Path, activation: str, depth: int
) -> None:
    changes = {"model__activation": activation, "model__depth": depth, "train__epochs": 1}
    result = train(config(**changes), FakeTrial(tmp_path))
    assert result is not None
    assert result["val_accuracy"] > 0.15


@pytest.mark.parametrize("stop_after", [2, 5, 10])
def test_a_trial_told_to_stop_goes_on_from_its_checkpoint_as_if_it_had_not_been(
    tmp_path: Path, stop_after: int
) -> None:
    whole = train(config(model__dropout=0.4), FakeTrial(tmp_path))
    checkpoints = Checkpoints(None, tmp_path)
    first = FakeTrial(
        checkpoints.begin("digits", 0, 1, resume=True).directory, stop_after=stop_after
    )
    assert train(config(model__dropout=0.4), first) is None
    assert max(first.reports) == stop_after

    second = FakeTrial(checkpoints.begin("digits", 0, 2, resume=True).directory)
    assert train(config(model__dropout=0.4), second) == whole
    assert min(second.reports) == stop_after + 1


def test_a_trial_killed_between_checkpoints_repeats_only_what_was_not_saved(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dying(FakeTrial):
        def should_prune(self) -> bool:
            if max(self.reports) == 9:
                raise Killed
            return False

    with pytest.raises(Killed):
        train(config(), Dying(tmp_path))
    second = FakeTrial(tmp_path)
    train(config(), second)
    assert list(second.reports) == [8, 9, 10, 11]


def test_asked_to_stop_after_the_last_epoch_it_returns_the_result(tmp_path: Path) -> None:
    assert train(config(), FakeTrial(tmp_path, stop_after=11)) is not None


def test_it_prunes_when_the_study_says_so(tmp_path: Path) -> None:
    trial = FakeTrial(tmp_path, prune_after=3)
    with pytest.raises(TrialPruned):
        train(config(), trial)
    assert max(trial.reports) == 3


def test_the_split_is_fixed_and_holds_out_a_fifth_of_every_class() -> None:
    import torch

    from orchestrator.examples import digits

    images, labels, val_images, val_labels = digits.load_split()
    assert (len(images), len(val_images)) == (1437, 360)
    share = torch.bincount(val_labels) / (torch.bincount(labels) + torch.bincount(val_labels))
    assert torch.all((share - 0.2).abs() < 0.01)
    assert torch.allclose(images.mean(0), torch.zeros(64), atol=1e-5), (
        "standardised by the training images"
    )
    assert not torch.allclose(val_images.mean(0), torch.zeros(64), atol=1e-2)
    assert torch.equal(digits.load_split()[0], images)
