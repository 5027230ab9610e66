"""The training of the examples with images on a GPU, in mixed precision. Needs no torchvision."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support.fake_trial import FakeTrial

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("torch")]
GPU = "cuda:0"


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def config(**optim: Any) -> Any:
    return OmegaConf.create(
        {
            "data": {"batch_size": 64, "augmentation": "crop_flip"},
            "model": {"backbone": "small_cnn", "dropout": 0.2},
            "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, **optim},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "train": {"epochs": 4, "mixed_precision": True, "checkpoint_every": 1},
        }
    )


def images() -> Any:
    """1,000 images whose class is where they are bright, of CIFAR-10's size."""
    import torch

    from orchestrator.examples.images import Images

    dice = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    pixels = torch.randint(0, 100, (1000, 3, 32, 32), dtype=torch.uint8, generator=dice)
    for i, label in enumerate(labels.tolist()):
        pixels[i, label % 3, 3 * label : 3 * label + 4] += 150
    return Images.split(pixels, labels, validation=0.2, n_classes=10, size=32, device=GPU)


def model_of(cfg: Any, trial: FakeTrial) -> Any:
    from orchestrator.examples.classification import classifier

    return classifier(cfg.model, 10, trial, cifar_stem=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("optim", [{}, {"name": "sam"}, {"name": "adamw", "lr": 1e-2}])
def test_it_learns_and_goes_on_from_its_checkpoint_bit_for_bit(
    tmp_path: Path, optim: dict[str, Any]
) -> None:
    from orchestrator.examples.classification import fit

    data, cfg = images(), config(**optim)

    def trained(place: str, **options: Any) -> dict[str, float] | None:
        (tmp_path / place).mkdir(exist_ok=True)
        trial = FakeTrial(tmp_path / place, device=GPU, **options)
        return fit(cfg, trial, data, model_of(cfg, trial))  # type: ignore[arg-type]

    whole = trained("whole")
    assert whole is not None
    assert whole["val_accuracy"] >= 0.5
    assert trained("stopped", stop_after=1) is None
    assert trained("stopped") == whole


@pytest.mark.parametrize("bfloat16", [True, False])
def test_16_bits_are_those_that_the_gpu_has_and_float16_needs_a_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    import torch

    from orchestrator.examples.classification import Precision, fit

    if bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute with bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)

    def seen(*, mixed: bool, scaled: bool) -> tuple[torch.dtype, bool]:
        precision = Precision(FakeTrial(tmp_path, device=GPU), mixed=mixed, scaled=scaled)  # type: ignore[arg-type]
        with precision.autocast():
            square = torch.ones(2, 2, device=GPU)
            return (square @ square).dtype, precision.scaler.is_enabled()

    small = torch.bfloat16 if bfloat16 else torch.float16
    assert seen(mixed=True, scaled=True) == (small, not bfloat16)
    assert seen(mixed=True, scaled=False) == (torch.bfloat16 if bfloat16 else torch.float32, False)
    assert seen(mixed=False, scaled=True) == (torch.float32, False)

    for name in ("sgd", "sam"):
        cfg, place = config(name=name), tmp_path / name
        place.mkdir()
        trial = FakeTrial(place, device=GPU)
        result = fit(cfg, trial, images(), model_of(cfg, trial))  # type: ignore[arg-type]
        assert result is not None
        assert result["val_accuracy"] >= 0.5


def test_model_and_images_are_channels_last_and_all_images_stay_bytes(tmp_path: Path) -> None:
    import torch

    from orchestrator.examples.classification import Precision, parts

    gc.collect()
    before = torch.cuda.memory_allocated()
    data = images()
    assert torch.cuda.memory_allocated() - before < 1.1 * 1000 * 3 * 32 * 32 + 100_000
    cfg, trial = config(), FakeTrial(tmp_path, device=GPU)
    precision = Precision(trial, mixed=True, scaled=False)  # type: ignore[arg-type]
    training = parts(cfg, data, model_of(cfg, trial), precision)
    inputs, _ = next(iter(training.batches))
    for tensor in (inputs, next(training.model.parameters())):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    training.loss((inputs, torch.zeros(64, dtype=torch.int64, device=GPU))).backward()
