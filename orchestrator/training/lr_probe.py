"""The probe that narrows a cell's learning rates to those that its training could use."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from orchestrator.training.arguments import number
from orchestrator.training.build import built
from orchestrator.training.curve import LRCurve
from orchestrator.training.curve_rules import NoAnswerError
from orchestrator.training.curve_svg import svg
from orchestrator.training.lr_range import lr_range_test

_NAME = "lr_range"


def lr_range(
    cfg: Any,
    trial: Any,
    *,
    build: str | Callable[[Any, Any], object],
    parameter: str,
    repeats: int = 3,
    steps: int = 100,
    start: float = 1e-7,
    end: float = 10.0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    widen: float = 2.0,
) -> dict[str, Any]:
    """Narrows a learning rate to where the cell's training could use it, by `lr_range_test`.

    The bounds are those of the curve, 1.5 decades, with both ends moved outwards by `widen`: a
    whole training, with its schedule and weight decay, may want less than its first steps bear, and
    a warm-up lets it bear more. By default they are 2.1 decades wide. Where the curve gives no
    answer there are no bounds, and the cell keeps those it declares.

    If `build` gives the optimizer another learning rate than the parameter says, because it scales
    it by the batch size, say, then the bounds are divided by the same factor.

    At most ``repeats * steps`` updates; a sweep ends where the loss diverges, usually after about
    85 of 100. The curve is stored as the artifact ``lr_range.json`` (`LRCurve.from_dict` reads it),
    its picture as ``lr_range.svg``; `LRCurve.plot` makes one to move about in.

    Args:
        cfg: the cell's configuration.
        trial: the trial that `build` gets, with ``log_artifact``.
        build: the function that returns the parts of the training, or its dotted name.
        parameter: the path of the learning rate in `cfg`, such as ``optim.lr``: that of the
            optimizer's first parameter group.
        repeats: sweeps.
        steps: updates of each, if it does not diverge; at least 20.
        start: first learning rate.
        end: last learning rate.
        accumulate: batches to each update.
        clip_norm: gradients are clipped to this norm.
        widen: factor by which both bounds move outwards; at least 1.

    Returns:
        ``bounds``: the interval of `parameter`, only if the curve gives an answer. ``facts``:
        ``suggestion``, ``low``, ``high`` and ``note`` of the curve, or the ``reason`` why there are
        none; ``steps`` and ``seconds`` that the probe took, ``ended`` of each sweep; ``scale``, by
        which `build` multiplied the parameter, only if so.

    Raises:
        TypeError: an argument has the wrong type, or `build` returned no parts.
        ValueError: an argument is out of its range, or there are too few batches.
        Exception: whatever `build` or a step raises.
    """
    began = time.perf_counter()
    if not isinstance(parameter, str) or not parameter:
        raise TypeError(f"parameter={parameter!r}: must be the path of a learning rate, optim.lr")
    if number("widen", widen) < 1:
        raise ValueError(f"widen={widen}: must be at least 1")
    parts = built(build, cfg, trial)
    curve = lr_range_test(
        parts.model,
        parts.optimizer,
        parts.loss_fn,
        parts.batches,
        step=parts.step,
        start=start,
        end=end,
        steps=steps,
        repeats=repeats,
        accumulate=accumulate,
        clip_norm=clip_norm,
    )
    facts: dict[str, Any] = {
        "steps": sum(len(sweep.lrs) + sweep.skipped for sweep in curve.sweeps),
        "ended": [sweep.ended for sweep in curve.sweeps],
    }
    _store(curve, trial)
    finding: dict[str, Any] = {"facts": facts}
    try:
        suggestion = curve.suggestion()
    except NoAnswerError as error:
        facts["reason"] = str(error)
    else:
        facts |= {
            "suggestion": suggestion.value,
            "low": suggestion.low,
            "high": suggestion.high,
            "note": suggestion.note,
        }
        high = suggestion.high * widen
        if suggestion.note is not None:  # training may be stable beyond the sweep's end
            high = max(high, curve.lrs[-1])
        scale = _scale(cfg, parameter, parts.optimizer)
        if scale != 1:
            facts["scale"] = scale
        finding["bounds"] = {parameter: [suggestion.low / widen / scale, high / scale]}
    facts["seconds"] = round(time.perf_counter() - began, 3)
    return finding


def _scale(cfg: Any, parameter: str, optimizer: Optimizer) -> float:
    """How many times the parameter the learning rate is that `build` gave the optimizer."""
    node = cfg
    for part in parameter.split("."):
        if not hasattr(node, "keys") or part not in node:
            return 1.0
        node = node[part]
    first = optimizer.param_groups[0]
    lr = float(first.get("initial_lr", first["lr"]))
    if isinstance(node, bool) or not isinstance(node, int | float) or node <= 0 or lr <= 0:
        return 1.0
    return 1.0 if math.isclose(lr, node, rel_tol=1e-6) else lr / node


def _store(curve: LRCurve, trial: Any) -> None:
    """Stores the curve and its picture as artifacts."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, f"{_NAME}.json")
        file.write_text(json.dumps(curve.to_dict(), allow_nan=False), encoding="utf-8")
        trial.log_artifact(file)
        picture = Path(directory, f"{_NAME}.svg")
        picture.write_text(svg(curve), encoding="utf-8")
        trial.log_artifact(picture)
