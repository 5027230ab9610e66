"""The section ``infeasible``: what happens to cells that run out of memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orchestrator.config.schema import checked
from orchestrator.config.space import Space, flatten
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Axis, JSONValue, value_label
from orchestrator.settings import InfeasibleSettings

NEED = "memory"
"""The only need that can be declared to grow along an axis."""
_SECTION = "infeasible.monotone"


def infeasible(values: Any, space: Space) -> InfeasibleSettings:
    """Returns the checked section as it is stored.

    Raises:
        ConfigError: an unknown setting or a value out of range; `monotone` names something other
            than a numeric axis, or says another word than ``memory``.
    """
    values = values or {}
    if isinstance(values, Mapping) and not isinstance(
        declared := values.get("monotone") or {}, Mapping
    ):
        raise ConfigError(
            f"{_SECTION}={declared!r}: must name grid axes, such as "
            f"{_SECTION}.data.batch_size=memory"
        )
    if isinstance(values, Mapping) and values.get("monotone") is None:
        values = {**values, "monotone": {}}
    settings = checked("infeasible", InfeasibleSettings, values)
    monotone: dict[str, JSONValue] = {}
    for path, need in flatten(_SECTION, settings.monotone).items():
        if need is None:  # cancels a declaration of another file
            continue
        if need != NEED:
            guess = did_you_mean(str(need), [NEED])
            raise ConfigError(
                f"{_SECTION}.{path}={value_label(need)}: must be the word {NEED}{guess}"
            )
        if path in space.grid:
            monotone[path] = _of_numbers(space.grid[path], need)
        else:
            raise ConfigError(f"{_SECTION}.{path}={need}: {_no_axis(path, space)}")
    return replace(settings, monotone=monotone)


def leave_out_fixed(config: DictConfig, space: Space) -> None:
    """Removes axes that the command line fixed to one value from the declaration, in `config`
    itself.

    Raises:
        ConfigError: one path is declared in two spellings.
    """
    declared = OmegaConf.select(config, _SECTION)
    if not OmegaConf.is_dict(declared):
        return
    needs = flatten(_SECTION, OmegaConf.to_container(declared, resolve=False))
    if any(map(space.was_axis, needs)):
        config.infeasible.monotone = {
            path: need for path, need in needs.items() if not space.was_axis(path)
        }


def _of_numbers(axis: Axis, need: JSONValue) -> JSONValue:
    odd = [
        value
        for value in axis.values
        if isinstance(value, bool) or not isinstance(value, (int, float))
    ]
    if odd:
        raise ConfigError(
            f"{_SECTION}.{axis.path}={need}: the values of {axis.path} must be numbers, because "
            f"other values have no order; it has {value_label(odd[0])}"
        )
    return need


def _no_axis(path: str, space: Space) -> str:
    axes = ", ".join(space.grid) or "none"
    if path in space.search:
        return (
            f"{path} is searched, and only a grid axis makes cells that can be closed; the grid "
            f"has {axes}"
        )
    return f"{path} is not an axis of the grid{did_you_mean(path, space.grid)}; the grid has {axes}"
