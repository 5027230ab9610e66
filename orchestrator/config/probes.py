"""The section ``probes``: what each cell is measured by before its first trial. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.config.functions import check_function
from orchestrator.config.space import Space
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import JSONValue, value_label

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_OURS = "orchestrator.training.probes."


def probes(declared: Mapping[str, Any], space: Space) -> dict[str, dict[str, JSONValue]]:
    """Returns the checked section as it is stored. Probes that are null are left out, and those of
    ours for a parameter or an axis that the command line has fixed: there is nothing to narrow.

    Raises:
        ConfigError: a name, ``_target_`` or key that is none; a probe of ours that names a
            parameter that is not searched, or an axis that is not on the grid.
    """
    checked = {}
    for name, probe in declared.items():
        if probe is None:  # cancels a declaration of another file
            continue
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"probes: the name {name!r} must begin with a letter and consist of at most 40 "
                "letters, digits, '_' and '-'"
            )
        found = _probe(f"probes.{name}", probe, space)
        if found is not None:
            checked[name] = found
    return checked


def _probe(where: str, probe: Any, space: Space) -> dict[str, JSONValue] | None:
    if not isinstance(probe, dict):
        raise ConfigError(
            f"{where}={value_label(probe)}: must be a mapping with _target_, such as {{_target_: "
            f"{_OURS}lr_range, build: my_project.build, parameter: optim.lr}}"
        )
    target = check_function(
        where,
        probe,
        missing="package.module.function, called as function(cfg, trial)",
        example=f"{_OURS}lr_range",
        own="_target_ and version",
    )
    for key, value in probe.items():
        if value == "???":
            raise ConfigError(f"{where}.{key} must be given: {where}.{key}=…")
    if target.startswith(_OURS):
        parameter, axis = str(probe.get("parameter")), str(probe.get("axis"))
        if space.was_searched(parameter) or space.was_axis(axis):
            return None
        _check_ours(where, probe, space)
    return dict(probe)


def _check_ours(where: str, probe: Mapping[str, Any], space: Space) -> None:
    parameter, axis = probe.get("parameter"), probe.get("axis")
    if parameter is not None:
        searched = space.search.get(parameter) if isinstance(parameter, str) else None
        if searched is None:
            there = ", ".join(space.search) or "nothing"
            guess = did_you_mean(str(parameter), space.search)
            raise ConfigError(
                f"{where}.parameter={value_label(parameter)}: must be a searched "
                f"parameter{guess}; searched: {there}"
            )
        if searched.kind == "categorical":
            raise ConfigError(
                f"{where}.parameter={parameter}: must be a number, and this one is one of several "
                "choices"
            )
    if axis is not None and (not isinstance(axis, str) or axis not in space.grid):
        there = ", ".join(space.grid) or "no axis"
        raise ConfigError(
            f"{where}.axis={value_label(axis)}: must be an axis of the "
            f"grid{did_you_mean(str(axis), space.grid)}; the grid has {there}"
        )
