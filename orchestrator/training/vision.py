"""torchvision, also where its compiled operators cannot be loaded."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Final

import torch

_SCHEMAS: Final = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The operators that torchvision describes to torch's compiler while it is being imported."""

_log = logging.getLogger(__name__)


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Imports torchvision or one of its modules, even if its compiled library does not load.

    A torchvision wheel is compiled against one build of torch. PyPI has only the wheel for CUDA. It
    installs beside a CPU build of torch without complaint, but there its library finds no CUDA to
    link with. torchvision itself expects that (`torchvision.extension` goes on without operators),
    but then describes two of the operators to torch's compiler, which raises ``operator
    torchvision::nms does not exist`` and ends the import. The same happens beside any torch of
    another version than the one that the wheel was compiled for.

    Models, data sets and the transforms of images need no such operator. So where the import ends
    that way, the missing operators are declared (a name and a signature, no implementation), and
    torchvision is imported again. Operators of object detection then raise when they are called,
    as does reading images with `torchvision.io`. A library that loads is used as it is.

    Args:
        module: ``torchvision``, or the full name of a module inside it.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported for another reason.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ImportError(
            "torchvision is not installed: pip install 'orchestrator[training]'", name="torchvision"
        ) from error
    except RuntimeError as error:
        missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
        if not missing:
            raise
        reason = error
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMAS[name])
    try:
        found = importlib.import_module(module)
    except RuntimeError:
        raise ImportError(
            f"torchvision cannot be imported beside torch {torch.__version__}: {reason}; "
            "install the two from the same index",
            name="torchvision",
        ) from reason
    _log.info(
        "torchvision %s has no compiled operators beside torch %s (object detection will fail; "
        "models, data sets and transforms work); to have them, install both from the same index: "
        "https://pytorch.org/get-started/locally",
        importlib.import_module("torchvision").__version__,
        torch.__version__,
    )
    return found
