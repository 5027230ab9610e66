"""The text of those of Hydra's flags that only show something."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.composing import Composed
from orchestrator.config.flags import Flags
from orchestrator.config.loader import Loader
from orchestrator.config.translate import translated
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.passwords import mask
from orchestrator.settings.describe import annotated


def show(flags: Flags, composed: Composed) -> str:
    """Returns the text that ``--cfg``, ``--help``, ``--hydra-help`` or ``--info`` asks for; it
    holds no password.

    Raises:
        ConfigError: ``--package`` names nothing, or ``--resolve`` cannot.
    """
    if flags.cfg:
        return _cfg(flags, composed)
    if flags.info:
        return mask(translated(lambda: _info(flags, composed)))
    hydra = Loader(flags.config_dir, flags.config_name).hydra
    node = composed.hydra.hydra_help if flags.hydra_help else composed.hydra.help
    config = (
        OmegaConf.create({"hydra": _plain_hydra(composed)})
        if flags.hydra_help
        else OmegaConf.masked_copy(
            composed.config, [str(key) for key in composed.config if key != "dashboard"]
        )
    )
    if flags.resolve:
        config = _resolve(config)
    text = translated(lambda: hydra.get_help(node, config, get_args_parser(), resolve=False))
    if flags.help:
        yaml = OmegaConf.to_yaml(config)
        text = text.replace(yaml, annotated(yaml))
    return mask(text).strip() + "\n"


def _plain_hydra(composed: Composed) -> Any:
    node: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    return {key: value for key, value in node.items() if key not in ("help", "hydra_help")}


def _cfg(flags: Flags, composed: Composed) -> str:
    parts: dict[str, Any] = {}
    if flags.cfg in ("job", "all"):
        parts |= {str(key): composed.config._get_node(key) for key in composed.config}
    if flags.cfg in ("hydra", "all"):
        parts["hydra"] = _plain_hydra(composed)
    config = OmegaConf.create(parts)
    if flags.package is None or flags.package == "_global_":
        return mask(OmegaConf.to_yaml(_resolve(config) if flags.resolve else config))
    if flags.resolve:
        config = _resolve(config, flags.package.split(".")[0])
    found = translated(lambda: OmegaConf.select(config, str(flags.package)))
    if found is None:
        raise ConfigError(
            f"--package {flags.package}: there is nothing of that "
            f"name{did_you_mean(flags.package, map(str, config))}"
        )
    if not isinstance(found, Container):
        return mask(f"{found}\n")
    return mask(f"# @package {flags.package}\n{OmegaConf.to_yaml(found)}")


def _resolve(config: DictConfig, section: str | None = None) -> DictConfig:
    """Returns a copy with one section, or all, resolved as a run would: `params` sees itself as
    root, the rest the whole.
    """
    whole = copy.deepcopy(config)
    for name in [section] if section else [str(key) for key in config]:
        node: Any = whole._get_node(name)
        if not isinstance(node, Container):
            continue
        if name == "params":
            node = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
        try:
            OmegaConf.resolve(node)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
        whole[name] = node
    return whole


def _info(flags: Flags, composed: Composed) -> str:
    """Hydra writes this through the root logger: it is caught there, and the logger
    left as it was.
    """
    hydra: Hydra = Loader(flags.config_dir, flags.config_name).hydra
    overrides = [*composed.hydra.overrides.hydra, *composed.hydra.overrides.task]
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    text = io.StringIO()
    root.handlers[:] = []  # our own would say it a second time
    try:
        with contextlib.redirect_stdout(text):
            hydra.show_info(str(flags.info), config_name=flags.config_name, overrides=overrides)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    return text.getvalue()
