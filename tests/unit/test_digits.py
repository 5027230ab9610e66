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
from tests.support.fake_trial import FakeTrial

pytestmark = pytest.mark.xdist_group("torch")  # one process imports it, not all


def config(**changes: Any) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "data": {"batch_size": 128},
            "model": {"hidden_units": 64, "depth": 1, "dropout": 0.1, "activation": "relu"},
            "optim": {"name": "adamw", "lr": 0.03, "weight_decay": 1e-4},
            "schedule": {"name": "onecycle"},
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


def test_a_study_from_before_optimizers_could_be_chosen_goes_on(tmp_path: Path) -> None:
    old = config()
    del old["schedule"], old.optim["name"]
    for directory in ("now", "old"):
        (tmp_path / directory).mkdir()
    now = train(config(), FakeTrial(tmp_path / "now"))
    assert train(old, FakeTrial(tmp_path / "old")) == now


@pytest.mark.parametrize(
    ("optimizer", "lr", "schedule"), [("sgd", 0.3, "cosine"), ("sam", 0.3, "wsd")]
)
def test_it_learns_with_other_optimizers_and_schedules(
    tmp_path: Path, optimizer: str, lr: float, schedule: str
) -> None:
    changes = {"optim__name": optimizer, "optim__lr": lr, "schedule__name": schedule}
    result = train(config(**changes), FakeTrial(tmp_path))
    assert result is not None
    assert result["val_accuracy"] >= 0.96


def test_by_default_rate_and_momentum_are_those_of_torchs_onecycle() -> None:
    import torch

    from orchestrator.examples.digits import ONE_CYCLE
    from orchestrator.examples.optimizers import make_optimizer, make_schedule

    model = torch.nn.Linear(2, 2)
    courses = []
    for ours in (True, False):
        optimizer = make_optimizer("adamw", model, lr=0.03, weight_decay=0.0)
        schedule = (
            make_schedule({"name": "onecycle", **ONE_CYCLE}, optimizer, 40)
            if ours
            else torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=40)
        )
        course = []
        for _ in range(40):
            course += [optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]]
            optimizer.step()
            if len(course) < 80:  # torch's own goes up again at one step too many
                schedule.step()
        courses.append(course)
    assert courses[0] == pytest.approx(courses[1])


@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_probes_get_the_parts_of_the_training(tmp_path: Path, optimizer: str) -> None:
    import torch

    from orchestrator.examples import digits

    cfg = config(optim__name=optimizer, optim__lr=1e-3)
    parts = digits.build(cfg, FakeTrial(tmp_path))  # type: ignore[arg-type]
    batches = list(parts.batches)
    assert [len(labels) for _, labels in batches] == [128] * 11 + [29]
    assert not torch.equal(next(iter(parts.batches))[1], batches[0][1]), "another order each time"
    assert type(parts.optimizer).__name__ == {"adamw": "AdamW", "sam": "SAM"}[optimizer]
    assert parts.optimizer.param_groups[0]["lr"] == 1e-3
    assert 2.0 < parts.loss(batches[0]).item() < 2.6, "about log 10 before training"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__name": "adam"}, "optim.name='adam': must be one of adamw, sgd, sam"),
        ({"schedule__name": "cosin"}, "did you mean 'cosine'"),
        ({"model__activation": "rely"}, "did you mean 'relu'"),
    ],
)
def test_an_unknown_name_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(**changes), FakeTrial(tmp_path))


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
