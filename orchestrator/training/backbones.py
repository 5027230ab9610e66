"""Backbones by name: networks from images to features."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from orchestrator.training.arguments import flag
from orchestrator.training.choices import look_up
from orchestrator.training.vision import import_torchvision


class Backbone(nn.Module):
    """From images (N, 3, H, W) to features (N, `out_features`).

    A frozen one never changes in training: its parameters require no gradient, and it stays in eval
    mode whatever `train` is called with, so that batch normalisation uses its stored statistics and
    does not update them. Gradients still pass through it to its input.
    """

    def __init__(self, trunk: nn.Module, out_features: int, *, frozen: bool = False) -> None:
        """Wraps a network.

        Args:
            trunk: Returns features (N, `out_features`) for images (N, 3, H, W).
            out_features: Number of features, what a head takes as its ``in_features``.
            frozen: Whether training leaves the trunk as it is.
        """
        super().__init__()
        self.trunk = trunk
        self.out_features = out_features
        self.frozen = frozen
        if frozen:
            trunk.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images)
        return features

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode and not self.frozen)
        return self


def backbone(
    name: str,
    *,
    frozen: bool = False,
    cifar_stem: bool = False,
    weights: str | Path | None = None,
    download: bool = False,
) -> Backbone:
    """Returns the backbone of that name, without a classifier; never uses the network by itself.

    Args:
        name: One of `BACKBONES`. ``small_cnn`` (three convolutions, 94,000 parameters) is of this
            module and for images of 8x8 or more; the others are torchvision's.
        frozen: Whether training leaves its parameters and its batch statistics as they are.
        cifar_stem: For images of about 32x32: the first convolution is 3x3 with stride 1 instead of
            7x7 with stride 2, and no pooling follows it, as He et al. (2016, section 4.2) and Huang
            et al. (2017) do on CIFAR. The stem of ``small_cnn`` is like that in any case.
        weights: None for random ones. A file with a state dict, alone or as ``state_dict`` or
            ``model`` of a checkpoint: of the whole torchvision model, whose classifier is left out,
            or of a model that contains this backbone as ``backbone``. Or the name of weights of
            torchvision, such as ``IMAGENET1K_V1`` or ``DEFAULT``, taken from torchvision's cache
            (``torch.hub.get_dir()/checkpoints``).
        download: Whether named weights that are not in the cache may be downloaded to it.

    Raises:
        FileNotFoundError: `weights` names no file, or the cache has no such weights.
        ImportError: torchvision is needed and not installed.
        TypeError: An argument has another type.
        ValueError: There is no such backbone, or the weights do not fit; nothing is returned then.
    """
    make = look_up("name", name, BACKBONES)
    if weights is not None and not isinstance(weights, str | Path):
        raise TypeError(f"weights={weights!r}: must be a file, a name, or null")
    for argument, value in (("frozen", frozen), ("cifar_stem", cifar_stem), ("download", download)):
        flag(argument, value)
    trunk, out_features = make(name, cifar_stem)
    made = Backbone(trunk, out_features, frozen=frozen)
    if weights is not None:
        file = _in_cache(name, str(weights), download) if _named(weights) else Path(weights)
        _load(made.trunk, file, name)
    return made


# ------------------------------------------------------------------------------------ architectures


def _small_cnn(name: str, cifar_stem: bool) -> tuple[nn.Module, int]:
    widths = (3, 32, 64, 128)
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [
            nn.Conv2d(narrow, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1]


def _resnet(name: str, cifar_stem: bool) -> tuple[nn.Module, int]:
    model = import_torchvision("torchvision.models").get_model(name, weights=None)
    if cifar_stem:
        model.conv1 = _stem_like(model.conv1)
        model.maxpool = nn.Identity()
    out_features = model.fc.in_features
    model.fc = nn.Identity()
    return model, out_features


def _densenet(name: str, cifar_stem: bool) -> tuple[nn.Module, int]:
    model = import_torchvision("torchvision.models").get_model(name, weights=None)
    if cifar_stem:
        model.features.conv0 = _stem_like(model.features.conv0)
        model.features.pool0 = nn.Identity()
    out_features = model.classifier.in_features
    model.classifier = nn.Identity()
    return model, out_features


def _stem_like(convolution: nn.Conv2d) -> nn.Conv2d:
    made = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, 3, stride=1, padding=1, bias=False
    )
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


BACKBONES: Final[dict[str, Callable[[str, bool], tuple[nn.Module, int]]]] = {
    "small_cnn": _small_cnn,
    "resnet18": _resnet,
    "resnet50": _resnet,
    "densenet121": _densenet,
    "densenet201": _densenet,
}
"""The backbones by name."""


# ------------------------------------------------------------------------------------------ weights


def _named(weights: str | Path | None) -> bool:
    """Whether it is the name of torchvision's weights rather than a file."""
    return isinstance(weights, str) and re.fullmatch(r"[A-Z][A-Z0-9_]*", weights) is not None


def _in_cache(name: str, weights: str, download: bool) -> Path:
    if BACKBONES[name] is _small_cnn:
        raise ValueError(f"weights={weights}: torchvision has none for {name}; give a file")
    choices = import_torchvision("torchvision.models").get_model_weights(name).__members__
    url = look_up("weights", weights, choices).url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if file.exists():
        return file
    if not download:
        raise FileNotFoundError(
            f"weights={weights}: {file} does not exist; to have it downloaded from {url}, set "
            "download to true"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    digits = re.search(r"-([0-9a-f]{8,})\.", file.name)
    torch.hub.download_url_to_file(url, str(file), hash_prefix=digits and digits[1], progress=False)
    return file


def _load(trunk: nn.Module, file: Path, name: str) -> None:
    """Loads the file's weights, all of them or none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no state dict, or one that does not fit.
    """
    if not file.is_file():
        raise FileNotFoundError(f"weights={file}: there is no such file")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for what is no checkpoint
        raise ValueError(
            f"weights={file}: cannot be read as a file that torch.save wrote: {_first_line(error)}"
        ) from error
    found = _of_backbone(saved, file)
    wanted = trunk.state_dict()
    wrong = [
        f"{key} is missing"
        for key in wanted
        # torch fills in this one, for files from before it existed
        if key not in found and not key.endswith(".num_batches_tracked")
    ]
    wrong += [f"{key} is not of {name}" for key in found if key not in wanted]
    wrong += [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        stems = ("conv1.weight is (", "features.conv0.weight is (")
        only_one = any(line.startswith(stems) for line in wrong)
        raise ValueError(
            f"weights={file}: do not fit {name}: {'; '.join(wrong[:4])}{more}"
            + ("; only one of the two has the stem of cifar_stem=true" if only_one else "")
        )
    trunk.load_state_dict(found)


def _of_backbone(saved: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of the trunk in what was saved, by their names there."""
    for key in ("state_dict", "model"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not (
        isinstance(saved, Mapping)
        and saved
        and all(isinstance(tensor, Tensor) for tensor in saved.values())
    ):
        raise ValueError(f"weights={file}: holds no state dict (a mapping of names to tensors)")
    tensors = {str(key).removeprefix("module."): tensor for key, tensor in saved.items()}
    ours = "backbone.trunk."
    if any(key.startswith(ours) for key in tensors):
        return {k.removeprefix(ours): v for k, v in tensors.items() if k.startswith(ours)}
    # torchvision's files of DenseNets are older than the names in its code.
    renamed = {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", k): v for k, v in tensors.items()}
    classifier = re.compile(r"(fc|classifier)\.(weight|bias)")
    return {key: tensor for key, tensor in renamed.items() if not classifier.fullmatch(key)}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
