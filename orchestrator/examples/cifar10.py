"""CIFAR-10: a backbone trained on 45,000 photographs of ten kinds of things.

The data are torchvision's: `data.directory` holds ``cifar-10-batches-py``, whose checksums are
verified. Nothing is downloaded unless `data.download` is set.

A tenth of the training set is held out to judge the trials by. The test set is never looked at: it
is for the one model that is chosen in the end.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.examples.classification import Precision, classifier, fit, parts
from orchestrator.examples.images import Images
from orchestrator.runner import Trial
from orchestrator.training import Parts, import_torchvision

if TYPE_CHECKING:
    from omegaconf import DictConfig

N_CLASSES = 10


def train(cfg: DictConfig, trial: Trial) -> dict[str, float] | None:
    """Trains a classifier and returns its validation accuracy and loss after the last epoch.

    None if stopped earlier.

    Args:
        cfg: ``data.directory``, ``.download``, ``.validation`` (the share held out); ``model``, as
            `classifier` has it; the rest as `fit` has it.
        trial: The running trial.

    Raises:
        FileNotFoundError: The data are not there, and may not be downloaded.
        TrialPruned: The study's pruner stopped the trial.
    """
    images = load(cfg.data, trial.device)
    return fit(cfg, trial, images, classifier(cfg.model, N_CLASSES, trial, cifar_stem=True))


def build(cfg: DictConfig, trial: Trial) -> Parts:
    """The model, optimizer, loss and batches of that training, for a probe."""
    images = load(cfg.data, trial.device)
    model = classifier(cfg.model, N_CLASSES, trial, cifar_stem=True)
    precision = Precision(trial, mixed=cfg.train.mixed_precision, scaled=False)
    return parts(cfg, images, model, precision)


def load(cfg: DictConfig, device: str, *, size: int = 32) -> Images:
    """The training set of CIFAR-10, split into training and validation.

    Args:
        cfg: ``directory``, ``download``, ``validation``.
        device: Where the images are to be.
        size: Height and width that the network gets.

    Raises:
        FileNotFoundError: The data are not there, and may not be downloaded.
        ValueError: They are damaged.
    """
    directory = Path(cfg.directory).expanduser()
    data = _read(directory, download=cfg.download)
    return Images.split(
        torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(data.targets),
        validation=cfg.validation,
        n_classes=N_CLASSES,
        size=size,
        device=device,
    )


def _read(directory: Path, *, download: bool) -> Any:
    make = import_torchvision("torchvision.datasets").CIFAR10
    if download:
        directory.mkdir(parents=True, exist_ok=True)
        # The trials of several workers may start together.
        with (directory / ".cifar10.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return make(directory, train=True, download=True)
    found = directory / make.base_folder
    how = "set data.download=true to have it downloaded there (170 MB)"
    if not found.is_dir():
        raise FileNotFoundError(
            f"data.directory={directory}: CIFAR-10 is not there ({found.absolute()} does not "
            "exist); set data.directory, or CIFAR10_DIR in the environment of the workers, to the "
            f"directory that contains {make.base_folder}, or {how}"
        )
    try:
        return make(directory, train=True)
    except RuntimeError as error:
        raise ValueError(
            f"data.directory={directory}: CIFAR-10 is incomplete or damaged there: the checksum "
            f"of a file in {found.absolute()} is not as published; delete it, and {how}"
        ) from error
