"""Backbones: their shapes, what freezing keeps, and weights that fit or do not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OUT_FEATURES = {
    "small_cnn": 128,
    "resnet18": 512,
    "resnet50": 2048,
    "densenet121": 1024,
    "densenet201": 1920,
}


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def backbone(name: str = "small_cnn", **arguments: Any) -> Any:
    from orchestrator.training.backbones import backbone as make

    return make(name, **arguments)


def images(size: int = 32, count: int = 2) -> Any:
    import torch

    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_there_is_a_row_here_for_every_backbone() -> None:
    from orchestrator.training.backbones import BACKBONES

    assert set(BACKBONES) == set(OUT_FEATURES)


@pytest.mark.parametrize(("name", "out_features"), OUT_FEATURES.items())
def test_its_features_are_as_many_as_it_says(name: str, out_features: int) -> None:
    made = backbone(name, cifar_stem=True).eval()
    assert made.out_features == out_features
    assert made(images()).shape == (2, out_features)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_the_cifar_stem_keeps_the_resolution_of_the_image(name: str) -> None:
    import torch

    sizes = []
    for cifar_stem in (False, True):
        made = backbone(name, cifar_stem=cifar_stem).eval()
        blocks = made.trunk.layer1 if name == "resnet18" else made.trunk.features.denseblock1
        blocks.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
        with torch.no_grad():
            made(images())
    assert sizes == [(8, 8), (32, 32)]


def test_small_images_are_enough_for_the_small_cnn() -> None:
    assert backbone()(images(size=8)).shape == (2, 128)


def trained(model: Any) -> None:
    """Three steps that would move all that can move."""
    import torch

    head = torch.nn.Linear(model.out_features, 2)
    whole = torch.nn.Sequential(model, head)
    parameters = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        whole.train()
        optimizer.zero_grad()
        whole(3 + 2 * images(size=8)).square().mean().backward()
        optimizer.step()


def test_a_frozen_backbone_is_the_same_after_training() -> None:
    import copy

    for frozen in (True, False):
        model = backbone(frozen=frozen)
        before = copy.deepcopy(model.state_dict())
        trained(model)
        assert equal(before, model.state_dict()) is frozen
        modes = {module.training for module in model.trunk.modules()}
        assert modes == {not frozen}
        assert {p.requires_grad for p in model.parameters()} == {not frozen}


def test_gradients_pass_through_a_frozen_backbone() -> None:
    inputs = images(size=8).requires_grad_()
    backbone(frozen=True)(inputs).sum().backward()
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "saved",
    [
        lambda model: model.trunk.state_dict(),
        lambda model: {"state_dict": model.trunk.state_dict()},
        lambda model: {"model": model.trunk.state_dict(), "epochs": 3},
        lambda model: {f"module.{key}": t for key, t in model.trunk.state_dict().items()},
        lambda model: (
            {f"backbone.{key}": t for key, t in model.state_dict().items()}
            | {"head.0.weight": model.trunk[0].weight}
        ),
    ],
    ids=["alone", "state_dict", "checkpoint", "data parallel", "inside a model"],
)
def test_weights_come_from_a_file(tmp_path: Path, saved: Any) -> None:
    import torch

    source, file = backbone(), tmp_path / "weights.pt"
    torch.save(saved(source), file)
    made = backbone(weights=str(file))
    assert equal(made.state_dict(), source.state_dict())
    assert not equal(backbone().state_dict(), source.state_dict())


def as_published(name: str) -> tuple[dict[str, Any], Any]:
    """A state dict as torchvision's servers have it, and the model it is of."""
    from orchestrator.training.vision import import_torchvision

    model = import_torchvision("torchvision.models").get_model(name)
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return state, model.eval()


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_published_weights_are_taken_from_the_cache_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torch
    from torch.nn import functional as F  # noqa: N812

    from orchestrator.training.vision import import_torchvision

    state, model = as_published(name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = import_torchvision("torchvision.models").get_model_weights(name)
    file = tmp_path / "checkpoints" / weights.IMAGENET1K_V1.url.rpartition("/")[2]
    with pytest.raises(FileNotFoundError, match=f"{file.name} does not exist.*set download"):
        backbone(name, weights="IMAGENET1K_V1")
    file.parent.mkdir()
    torch.save(state, file)

    made = backbone(name, weights="DEFAULT" if name == "densenet121" else "IMAGENET1K_V1").eval()
    classifier = model.fc if name == "resnet18" else model.classifier
    with torch.no_grad():
        logits = F.linear(made(images(64)), classifier.weight, classifier.bias)
        assert torch.allclose(logits, model(images(64)), atol=1e-5)


def test_a_download_is_checked_and_only_made_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked = []

    def download(url: str, file: str, *, hash_prefix: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], Path(file).name, hash_prefix, progress))
        torch.save(as_published("resnet18")[0], file)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    backbone("resnet18", weights="IMAGENET1K_V1", download=True)
    backbone("resnet18", weights="IMAGENET1K_V1", download=True)
    file = "resnet18-f37072fd.pth"
    assert asked == [(file, file, "f37072fd", False)]


def test_weights_that_do_not_fit_are_refused_with_their_keys(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "weights.pt"
    state = backbone().trunk.state_dict()
    torch.save({"0.weight": state["0.weight"][:, :1], "9.gain": state["0.weight"]} | {}, file)
    with pytest.raises(
        ValueError, match=r"weights\.pt: do not fit small_cnn: 1\.weight is missing"
    ):
        backbone(weights=file)

    torch.save(state | {"0.weight": state["0.weight"][:, :1], "9.gain": state["0.weight"]}, file)
    message = (
        r"9\.gain is not of small_cnn; 0\.weight is \(32, 1, 3, 3\) instead of \(32, 3, 3, 3\)$"
    )
    with pytest.raises(ValueError, match=message):
        backbone(weights=file)

    torch.save(backbone("resnet18").trunk.state_dict(), file)
    with pytest.raises(ValueError, match=r"conv1\.weight is .*only one .* stem of cifar_stem=true"):
        backbone("resnet18", weights=file, cifar_stem=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "resnet81"}, ValueError, "name='resnet81': .*did you mean 'resnet18'"),
        ({"name": 18}, TypeError, "name=18: must be one of small_cnn"),
        ({"weights": "nowhere/weights.pt"}, FileNotFoundError, "nowhere/weights.pt: there is no"),
        ({"frozen": "false"}, TypeError, "frozen='false': must be True or False"),
        ({"cifar_stem": 0}, TypeError, "cifar_stem=0: must be True or False"),
        ({"weights": 3}, TypeError, "weights=3: must be a file, a name, or null"),
        ({"weights": "DEFAULT"}, ValueError, "torchvision has none for small_cnn"),
        (
            {"name": "resnet50", "weights": "IMAGENET1K_V3"},
            ValueError,
            "weights='IMAGENET1K_V3': must be one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT",
        ),
    ],
)
def test_what_makes_no_backbone_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        backbone(**arguments)


@pytest.mark.parametrize("content", ["text", "number", "empty"])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: str) -> None:
    import torch

    file = tmp_path / "weights.pt"
    if content == "text":
        file.write_text("these are no weights")
    else:
        torch.save(3 if content == "number" else {}, file)
    with pytest.raises(ValueError, match=f"{file}: (cannot be read as a file|holds no state dict)"):
        backbone(weights=file)
