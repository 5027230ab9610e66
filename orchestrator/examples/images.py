"""Images on the trial's device: held out, augmented, normalised, in batches.

All images stay on the device, as bytes: a batch is taken, augmented and normalised there, and no
other process has to load anything. CIFAR-10 takes 150 MB that way.
"""

# mypy: allow-untyped-calls
# (torch does not annotate `Tensor.split`)

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.training.choices import look_up


@dataclass(frozen=True)
class Images:
    """Images (N, 3, H, W) of dtype uint8 and their labels (N,), of two sets on one device."""

    training: Tensor
    labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    n_classes: int
    size: int  # height and width that the network gets

    @classmethod
    def split(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        validation: float,
        n_classes: int,
        size: int,
        device: str,
    ) -> Images:
        """Holds the same share of every class out for validation, always the same images.

        Args:
            images: (N, 3, H, W), uint8.
            labels: (N,), int64.
            validation: The share, in (0, 1); at least one image of each class.
            n_classes: Number of classes.
            size: Height and width that the network gets.
            device: Where the images are to be.

        Raises:
            ValueError: `validation` is out of range, or a class has too few images.
        """
        if not 0 < validation < 1:
            raise ValueError(f"data.validation={validation}: must be between 0 and 1")
        dice = torch.Generator().manual_seed(0)
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(n_classes):
            rows = (labels == label).nonzero().squeeze(1)
            count = max(1, round(validation * len(rows)))
            if len(rows) <= count:
                raise ValueError(
                    f"data.validation={validation}: class {label} has {len(rows)} images, too few "
                    "for training and validation"
                )
            held_out[rows[torch.randperm(len(rows), generator=dice)[:count]]] = True
        return cls(
            images[~held_out].to(device),
            labels[~held_out].to(device),
            images[held_out].to(device),
            labels[held_out].to(device),
            n_classes,
            size,
        )


class Normalised:
    """From bytes to what the network gets: every channel with mean 0 and deviation 1.

    Mean and deviation are those of the training set. Images of another size than the network's are
    resized.
    """

    def __init__(self, images: Images) -> None:
        # Some are enough, and all of them as floats would take a gigabyte.
        some = images.training[:: max(1, len(images.training) // 5000)].float()
        self._mean = some.mean((0, 2, 3), keepdim=True)
        self._deviation = some.std((0, 2, 3), keepdim=True).clamp(min=1.0)
        self._size = images.size

    def __call__(self, images: Tensor) -> Tensor:
        normal = (images - self._mean) / self._deviation
        if images.shape[2:] != (self._size, self._size):
            normal = F.interpolate(normal, (self._size, self._size), mode="bilinear")
        return normal.contiguous(memory_format=memory_format(normal))


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The format of images and kernels that is fastest on the tensor's device.

    Convolutions in 16 bits prefer channels last.
    """
    return torch.channels_last if tensor.is_cuda else torch.contiguous_format


def unchanged(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def cropped(images: Tensor, *, flip: bool = False) -> Tensor:
    """Shifts every image (N, C, H, W) by up to an eighth of its size, at random, and fills with 0.

    Args:
        images: Of any dtype.
        flip: Whether half of them, at random, are also mirrored.
    """
    count, channels, height, width = images.shape
    device = images.device
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down))
    rows = torch.randint(0, 2 * down + 1, (count, 1), device=device) + torch.arange(
        height, device=device
    )
    columns = torch.randint(0, 2 * right + 1, (count, 1), device=device) + torch.arange(
        width, device=device
    )
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def cropped_and_flipped(images: Tensor) -> Tensor:
    """As `cropped`, and half of the images, at random, are mirrored."""
    return cropped(images, flip=True)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": unchanged,
    "crop": cropped,
    "crop_flip": cropped_and_flipped,
}


class Batches:
    """Batches (inputs, labels) of one epoch: each iteration is another, by torch's random numbers.

    The images that remain after the last full batch are left out: others each time.
    """

    def __init__(self, images: Images, batch_size: int, augmentation: str) -> None:
        """Raises ValueError for a batch larger than the training set, or no such augmentation."""
        if not 1 <= batch_size <= len(images.training):
            raise ValueError(
                f"data.batch_size={batch_size}: must be from 1 to {len(images.training)}, the "
                "number of training images"
            )
        self._images, self._batch_size = images, batch_size
        self._augmented = look_up("data.augmentation", augmentation, AUGMENTATIONS)
        self.normalised = Normalised(images)

    def __len__(self) -> int:
        return len(self._images.training) // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self._images
        order = torch.randperm(len(images.training), device=images.training.device)
        for rows in order.split(self._batch_size)[: len(self)]:
            chosen = self._augmented(images.training[rows])
            yield self.normalised(chosen), images.labels[rows]
