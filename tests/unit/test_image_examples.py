"""The examples with images: what is loaded and held out, how it is augmented, and that training
learns and goes on from its checkpoint as if nothing had happened.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from orchestrator.config import compose, study_spec
from orchestrator.model import StudySpec
from orchestrator.runner import TrialPruned
from orchestrator.runner.files import Checkpoints
from tests.support import cifar10 as made
from tests.support.commands import ROOT
from tests.support.fake_trial import FakeTrial

pytestmark = pytest.mark.xdist_group("torch")  # one process imports it, not all


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


def config(experiment: str, **changes: Any) -> DictConfig:
    cfg = OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml").params
    for path, value in changes.items():
        OmegaConf.update(cfg, path.replace("__", "."), value)
    assert isinstance(cfg, DictConfig)
    return cfg


def spec(*words: str) -> StudySpec:
    return study_spec(compose("launch", words))


# -------------------------------------------------------------------------------------- CIFAR-10


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cifar10")
    made.write(directory)
    return directory


@pytest.fixture
def published(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the made files, which torchvision takes for the published ones."""
    pretend(files, monkeypatch)
    return files


def pretend(files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from orchestrator.training import import_torchvision

    data_set = import_torchvision("torchvision.datasets").CIFAR10
    for name, value in made.checksums(files).items():
        monkeypatch.setattr(data_set, name, value)
    return data_set


def small(directory: Path, **changes: Any) -> DictConfig:
    """The example's own config, with a network that a test can train."""
    ours = {
        "data__directory": str(directory),
        "data__batch_size": 15,
        "model__backbone": "small_cnn",
        "optim__lr": 0.05,
        "train__epochs": 2,
        "train__checkpoint_every": 1,
    }
    return config("cifar10", **(ours | changes))


def train_cifar10(cfg: DictConfig, trial: FakeTrial) -> dict[str, float] | None:
    from orchestrator.examples import cifar10

    return cifar10.train(cfg, trial)  # type: ignore[arg-type]


def test_it_learns_from_files_of_the_published_format(published: Path, tmp_path: Path) -> None:
    trial = FakeTrial(tmp_path)
    result = train_cifar10(small(published, train__epochs=8), trial)
    assert result is not None
    assert result["val_accuracy"] >= 0.5, "of ten classes, after 48 steps"
    assert list(trial.reports) == list(range(8))
    assert trial.reports[7] == result["val_accuracy"]
    assert result["trained_parameters"] == 93_472 + 128 * 10 + 10


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim__name": "sam", "schedule__name": "onecycle"},
        {"optim__name": "adamw", "optim__lr": 1e-3, "schedule__name": "wsd"},
    ],
    ids=["sgd", "sam", "adamw"],
)
def test_a_trial_told_to_stop_goes_on_as_if_it_had_not_been(
    published: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    cfg = small(published, model__dropout=0.3, **changes)
    whole = train_cifar10(cfg, FakeTrial(tmp_path))
    checkpoints = Checkpoints(None, tmp_path)
    first = FakeTrial(checkpoints.begin("cifar10", 0, 1, resume=True).directory, stop_after=0)
    assert train_cifar10(cfg, first) is None
    second = FakeTrial(checkpoints.begin("cifar10", 0, 2, resume=True).directory)
    assert train_cifar10(cfg, second) == whole
    assert list(second.reports) == [1]


def test_it_prunes_when_the_study_says_so(published: Path, tmp_path: Path) -> None:
    with pytest.raises(TrialPruned):
        train_cifar10(small(published), FakeTrial(tmp_path, prune_after=0))


def test_the_same_tenth_of_every_class_is_held_out_and_no_test_image_is_seen(
    published: Path,
) -> None:
    import torch

    from orchestrator.examples import cifar10

    images, again = (cifar10.load(small(published).data, "cpu") for _ in range(2))
    assert torch.bincount(images.labels).tolist() == [9] * 10
    assert torch.bincount(images.validation_labels).tolist() == [1] * 10
    assert torch.equal(images.validation, again.validation)
    rows = {tuple(image.flatten().tolist()) for image in [*images.training, *images.validation]}
    assert len(rows) == 100, "no image is in both"
    for part in (images.training, images.validation):
        assert part.dtype is torch.uint8
        assert part.shape[1:] == (3, 32, 32)
        assert not (part == made.OF_THE_TEST_SET).all((1, 2, 3)).any()
    assert torch.all(images.training[images.labels == 4][:, 1, 31].float().mean(1) > 150), (
        "channels and rows are where the files have them"
    )


def test_missing_data_are_one_clear_error(tmp_path: Path) -> None:
    message = (
        rf"data.directory={tmp_path}: CIFAR-10 is not there .* set data.directory, or CIFAR10_DIR"
        r".*data.download=true"
    )
    with pytest.raises(FileNotFoundError, match=message):
        train_cifar10(small(tmp_path), FakeTrial(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_files_whose_checksums_are_not_the_published_ones_are_refused(
    files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"incomplete or damaged.*a file in .*cifar-10-batches-py"):
        train_cifar10(small(files), FakeTrial(tmp_path))


def test_data_are_downloaded_if_asked_for(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.examples import cifar10

    data_set = pretend(files, monkeypatch)
    asked = []

    def download(self: Any) -> None:
        asked.append(Path(self.root))
        # Another trial that starts now waits for this one.
        with (place / ".cifar10.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.write(Path(self.root))

    place = tmp_path / "new" / "place"
    monkeypatch.setattr(data_set, "download", download)
    images = cifar10.load(small(place, data__download=True).data, "cpu")
    assert asked == [place]
    assert len(images.training) == 90
    cifar10.load(small(place).data, "cpu")
    assert asked == [place]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__batch_size": 91}, "data.batch_size=91: must be from 1 to 90"),
        ({"data__batch_size": 0}, "data.batch_size=0: must be from 1 to 90"),
        ({"data__validation": 1.0}, r"data.validation=1\.0: must be between 0 and 1"),
        ({"data__validation": 0.99}, "class 0 has 10 images, too few"),
        ({"data__augmentation": "flip"}, "data.augmentation='flip': .*did you mean 'crop_flip'"),
        ({"model__backbone": "small"}, "did you mean 'small_cnn'"),
        ({"optim__name": "sg"}, "did you mean 'sgd'"),
        ({"schedule__warmup": 1}, r"schedule.warmup=1: must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    published: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_cifar10(small(published, **changes), FakeTrial(tmp_path))


def test_probes_get_the_parts_of_the_training(published: Path, tmp_path: Path) -> None:
    import torch

    from orchestrator.examples import cifar10

    cfg = small(published, data__batch_size=40, optim__momentum=0.8)
    parts = cifar10.build(cfg, FakeTrial(tmp_path))  # type: ignore[arg-type]
    batches = list(parts.batches)
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(40, 3, 32, 32)] * 2
    assert not torch.equal(next(iter(parts.batches))[1], batches[0][1]), "another order each time"
    assert parts.optimizer.param_groups[0]["momentum"] == 0.8
    loss = parts.loss(batches[0])
    loss.backward()
    assert 1.5 < loss.item() < 4
    assert all(p.grad is not None for p in parts.model.parameters())


def test_the_probes_of_a_cell_take_at_most_a_fiftieth_of_the_steps_of_its_trials() -> None:
    study = spec("experiment=cifar10")
    (batch_sizes,) = [axis.values for axis in study.grid if axis.path == "data.batch_size"]
    epochs = study.params["train"]["epochs"]
    of_the_cells = [study.budget.per_cell * epochs * (45_000 // size) for size in batch_sizes]
    assert list(study.probes) == ["lr", "memory"]
    most = 3 * 100 + 11  # three sweeps of a hundred steps, and the batch and its parts
    assert all(most <= 0.02 * steps for steps in of_the_cells)


# ---------------------------------------------------------------------------------- augmentation


def test_a_cropped_image_is_the_image_shifted_and_perhaps_mirrored() -> None:
    import torch
    from torch.nn import functional as F  # noqa: N812

    from orchestrator.examples.images import AUGMENTATIONS

    torch.manual_seed(0)
    images = torch.randint(1, 255, (200, 3, 8, 16), dtype=torch.uint8)
    padded = F.pad(images, (2, 2, 1, 1))
    shifts = [(down, right) for down in range(3) for right in range(5)]
    views = [padded[:, :, down : down + 8, right : right + 16] for down, right in shifts]
    for name, allowed in (
        ("none", [images]),
        ("crop", views),
        ("crop_flip", [*views, *(view.flip(3) for view in views)]),
    ):
        augmented = AUGMENTATIONS[name](images)
        assert augmented.dtype is torch.uint8
        matches = torch.stack([(augmented == view).all((1, 2, 3)) for view in allowed])
        assert matches.any(0).all(), name
        assert matches.any(1).all(), f"{name}: every shift occurs"


def test_the_network_gets_normalised_images_of_its_size(published: Path) -> None:
    import torch

    from orchestrator.examples import cifar10
    from orchestrator.examples.images import Normalised

    images = cifar10.load(small(published).data, "cpu")
    inputs = Normalised(images)(images.training)
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-4)
    larger = Normalised(cifar10.load(small(published).data, "cpu", size=48))(images.training[:2])
    assert larger.shape == (2, 3, 48, 48)
    assert torch.allclose(larger.mean(), inputs[:2].mean(), atol=0.02)


# -------------------------------------------------------------------------------------- finetune


def finetune(cfg: DictConfig, trial: FakeTrial) -> dict[str, float] | None:
    from orchestrator.examples import finetune

    return finetune.train(cfg, trial)  # type: ignore[arg-type]


def test_a_backbone_and_a_head_learn_the_digits(tmp_path: Path) -> None:
    cfg = config("finetune", data__image_size=8, data__validation=0.5, train__epochs=2)
    result = finetune(cfg, FakeTrial(tmp_path))
    assert result is not None
    assert result["val_accuracy"] >= 0.8


def test_a_frozen_backbone_has_the_weights_of_a_checkpoint_of_cifar10(
    published: Path, tmp_path: Path
) -> None:
    import torch

    from orchestrator.examples import finetune as example

    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    train_cifar10(small(published), FakeTrial(source, stop_after=0))
    weights = source / "last.pt"
    cfg = config(
        "finetune",
        **{"model__frozen": True, "model__weights": str(weights), "train__epochs": 1},
        **{"data__directory": str(published), "data__image_size": 16, "data__batch_size": 10},
    )
    before = torch.load(weights, weights_only=True)["model"]
    result = finetune(cfg, FakeTrial(target, stop_after=0))
    assert result is not None
    assert result["trained_parameters"] == 128 * 64 + 64 + 64 * 10 + 10
    after = torch.load(target / "last.pt", weights_only=True)["model"]
    trunk = [key for key in after if key.startswith("backbone.")]
    assert len(trunk) == 18
    assert all(torch.equal(before[key], after[key]) for key in trunk)

    parts = example.build(cfg, FakeTrial(tmp_path))  # type: ignore[arg-type]
    assert len(parts.optimizer.param_groups[0]["params"]) == 4, "those of the head"


def test_a_frozen_backbone_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.frozen=true: needs model.weights"):
        finetune(config("finetune", model__frozen=True), FakeTrial(tmp_path))


SUBJECTS = re.findall(
    r"(?m)^#   orchestrator launch (experiment=finetune (?:\\\n|.)*)$",
    (ROOT / "conf" / "experiment" / "finetune.yaml").read_text(),
)


def test_every_subject_of_the_shipped_config_is_one_axis() -> None:
    assert len(SUBJECTS) == 8
    for line in SUBJECTS:
        words = line.replace("\\\n#", "").split()
        study = spec(*words)
        assert study.n_cells == words[2].count(",") + 1, line
        assert study.budget.trials == study.n_cells * study.budget.per_cell
