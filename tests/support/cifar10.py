"""Small files in CIFAR-10's own format, and their checksums in place of the published ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "cifar-10-batches-py"
OF_THE_TEST_SET = 255  # the value of every byte in it


def write(directory: Path, *, images: int = 20, seed: int = 0) -> None:
    """Writes five training files and the test file, of `images` images each, and the names.

    The classes take turns. A class is a direction in which the images become brighter, and a
    channel.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True)
    dice = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 32)
    labels = [i % 10 for i in range(images)]
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = dice.integers(0, 50, (images, 3, 32, 32))
        for image, label in zip(pixels, labels, strict=True):
            image[label % 3] += (ramp if label % 2 else ramp[:, None]).astype(np.int64)
        if name == "test_batch":
            pixels[:] = OF_THE_TEST_SET
        content = {
            "batch_label": name,
            "labels": labels,
            "data": pixels.reshape(images, -1).astype(np.uint8),
            "filenames": [f"{name}_{i}.png" for i in range(images)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {"label_names": [f"kind {i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))


def checksums(directory: Path) -> dict[str, Any]:
    """The attributes that make torchvision's class take the files there for the published ones."""

    def md5(name: str) -> str:
        return hashlib.md5((directory / FOLDER / name).read_bytes()).hexdigest()

    training = [f"data_batch_{i}" for i in range(1, 6)]
    return {
        "train_list": [[name, md5(name)] for name in training],
        "test_list": [["test_batch", md5("test_batch")]],
        "meta": {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": md5("batches.meta"),
        },
    }
