"""torchvision imports here whichever build of it is installed, and what is wrong is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AS_INSTALLED = """
import logging, warnings
logging.basicConfig(level="INFO", format="LOG %(message)s")
try:
    import torchvision
    imports_alone = True
except RuntimeError:
    imports_alone = False

import torch
from orchestrator.training.vision import import_torchvision

models = import_torchvision("torchvision.models")
assert models.resnet18(num_classes=3).eval()(torch.ones(1, 3, 32, 32)).shape == (1, 3)
assert import_torchvision("torchvision.datasets").CIFAR10.base_folder == "cifar-10-batches-py"
assert import_torchvision("torchvision.transforms").RandomCrop(2)
assert import_torchvision() is __import__("torchvision")

boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
for nms in (torch.ops.torchvision.nms, import_torchvision("torchvision.ops").nms):
    try:
        nms(boxes, torch.ones(1), 0.5)
    except RuntimeError as error:  # NotImplementedError is one
        assert not imports_alone, error
    else:
        assert imports_alone, "an operator without an implementation gave an answer"
print("alone" if imports_alone else "with operators declared")
"""


def test_torchvision_imports_as_it_is_installed_here() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_INSTALLED], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.count("has no compiled operators beside torch")
    assert said == (0 if done.stdout == "alone\n" else 1)


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Puts a torchvision of that source in place of the installed one."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(folder)


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.training.vision import import_torchvision

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"pip install 'orchestrator\[training\]'"):
        import_torchvision()


def test_what_torchvision_itself_lacks_is_named_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.training.vision import import_torchvision

    fake(tmp_path, monkeypatch, "import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_torchvision()


def test_an_error_that_no_operator_mends_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.training import vision

    fake(tmp_path, monkeypatch, "raise RuntimeError('compiled for another CUDA')")
    monkeypatch.setattr(vision, "_SCHEMAS", {})  # as if all operators existed
    with pytest.raises(RuntimeError, match=r"^compiled for another CUDA$"):
        vision.import_torchvision()
    monkeypatch.setattr(vision, "_SCHEMAS", {"never_called": "(Tensor x) -> Tensor"})
    with pytest.raises(ImportError, match=r"beside torch .*: compiled for another CUDA; install"):
        vision.import_torchvision()
