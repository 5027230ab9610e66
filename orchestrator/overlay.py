"""Overlays a trial's values on ``params``.

Shared by everything that shows, checks or runs a trial.
"""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from orchestrator.model import JSONValue


def overlay(cfg: DictConfig, values: Mapping[str, JSONValue]) -> None:
    """Sets each value at its dotted path in `cfg`, replacing whatever is there.

    Shorter paths come first, so that a value below another one is not overwritten by it.
    """
    for path in sorted(values, key=lambda path: path.count(".")):
        _set(cfg, path, values[path])


def _set(cfg: DictConfig, path: str, value: JSONValue) -> None:
    if "." not in path:
        cfg[path] = value  # what `update` would do, in a quarter of the time
        return

    # A parent that is an interpolation (`optim: ${presets.adam}`) is replaced by a copy of what it
    # refers to: one new value must not hide the rest.
    parts = path.split(".")
    for count in range(1, len(parts)):
        parent = ".".join(parts[:count])
        node = OmegaConf.select(cfg, parent)
        owner = OmegaConf.select(cfg, ".".join(parts[: count - 1])) if count > 1 else cfg
        if not OmegaConf.is_config(node) or not OmegaConf.is_dict(owner):
            continue
        if OmegaConf.is_interpolation(owner, parts[count - 1]):
            OmegaConf.update(cfg, parent, OmegaConf.to_container(node), merge=False)
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)
