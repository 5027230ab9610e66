"""How a trial's values are laid over ``params``: what every place that shows, checks or runs a
trial does alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from orchestrator.model import JSONValue


def overlay(cfg: DictConfig, values: Mapping[str, JSONValue]) -> None:
    """Puts each value at its dotted path in `cfg`, in place of all that is there; what lies below
    another comes after it.
    """
    for path in sorted(values, key=lambda path: path.count(".")):
        _set(cfg, path, values[path])


def _set(cfg: DictConfig, path: str, value: JSONValue) -> None:
    if "." not in path:
        cfg[path] = value  # as `update` does in the end, in a quarter of the time
        return
    # A parent that is an interpolation (`optim: ${presets.adam}`) becomes a copy: one new value
    # must not hide the rest of it.
    parts = path.split(".")
    for count in range(1, len(parts)):
        parent = ".".join(parts[:count])
        node = OmegaConf.select(cfg, parent)
        owner = OmegaConf.select(cfg, ".".join(parts[: count - 1])) if count > 1 else cfg
        if (
            OmegaConf.is_config(node)
            and OmegaConf.is_dict(owner)
            and OmegaConf.is_interpolation(owner, parts[count - 1])
        ):
            OmegaConf.update(cfg, parent, OmegaConf.to_container(node), merge=False)
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)
