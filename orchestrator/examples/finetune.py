"""A backbone and a head on a small set of images: what to vary, one subject at a time.

By default the images are scikit-learn's 1,797 handwritten digits, enlarged and in three channels,
so that a trial takes seconds on one CPU core and needs no download. With `data.directory` they are
those of CIFAR-10 instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from orchestrator.examples import cifar10
from orchestrator.examples.classification import Classifier, Precision, classifier, fit, parts
from orchestrator.examples.images import Images
from orchestrator.runner import Trial
from orchestrator.training import Parts

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: DictConfig, trial: Trial) -> dict[str, float] | None:
    """Trains the head, and the backbone unless it is frozen; returns accuracy and loss at the end.

    None if stopped earlier.

    Args:
        cfg: ``data.directory`` (null: digits), ``.image_size``; ``model``, as `classifier` has
            it, with ``cifar_stem``; the rest as `fit` has it.
        trial: The running trial.

    Raises:
        TrialPruned: The study's pruner stopped the trial.
        ValueError: The backbone is frozen but has no weights: it would never learn anything.
    """
    images = load(cfg.data, trial.device)
    return fit(cfg, trial, images, model_of(cfg.model, images, trial))


def build(cfg: DictConfig, trial: Trial) -> Parts:
    """The model, optimizer, loss and batches of that training, for a probe."""
    images = load(cfg.data, trial.device)
    precision = Precision(trial, mixed=cfg.train.mixed_precision, scaled=False)
    return parts(cfg, images, model_of(cfg.model, images, trial), precision)


def model_of(cfg: DictConfig, images: Images, trial: Trial) -> Classifier:
    """The model that `cfg` describes, for these images."""
    if cfg.frozen and cfg.weights is None:
        raise ValueError(
            "model.frozen=true: needs model.weights (a file, or a name such as IMAGENET1K_V1); a "
            "frozen backbone with random weights would never learn anything"
        )
    options = {str(name): value for name, value in cfg.items()}
    cifar_stem = options.pop("cifar_stem")
    return classifier(options, images.n_classes, trial, cifar_stem=cifar_stem)


def load(cfg: DictConfig, device: str) -> Images:
    """The digits, or CIFAR-10, which the network gets with `image_size` pixels in both directions.

    Raises:
        FileNotFoundError: CIFAR-10 is asked for and not there, and may not be downloaded.
        ImportError: The digits are asked for, and scikit-learn is not installed.
    """
    if cfg.directory is not None:
        return cifar10.load(cfg, device, size=cfg.image_size)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # 8x8 grey levels from 0 to 16
    grey = torch.from_numpy(images).reshape(-1, 1, 8, 8) * (255 / 16)
    return Images.split(
        grey.round().to(torch.uint8).repeat(1, 3, 1, 1),
        torch.from_numpy(labels),
        validation=cfg.validation,
        n_classes=10,
        size=cfg.image_size,
        device=device,
    )
