"""Errors of Hydra and OmegaConf as one line of ours, and sections of a composed config as plain
containers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import yaml
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config import grammar
from orchestrator.errors import ConfigError, denied, did_you_mean

T = TypeVar("T")
# what OmegaConf adds to its messages
_NOISE = re.compile(r"\n\s*((object|reference)_type=.*|full_key: *$)", re.MULTILINE)


def translated(action: Callable[[], T]) -> T:
    """Returns what `action` returns; what Hydra and OmegaConf raise becomes a ConfigError of one
    line.
    """
    try:
        return action()
    except MissingConfigException as error:
        text = re.split(r"\n\s*(?:Available options|Config search path|Search path)", str(error))[0]
        missing = (error.missing_cfg_file or "").rsplit("/", 1)[-1]
        listed = f"; there are {', '.join(error.options)}" if error.options else ""
        raise ConfigError(
            f"{one_line(text)}{did_you_mean(missing, error.options or ())}{listed}"
        ) from error
    except PermissionError as error:
        raise ConfigError(denied(error.filename) or one_line(str(error))) from error
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
    ) as error:
        cause = (
            error.__cause__
            if isinstance(error.__cause__, (OmegaConfBaseException, yaml.YAMLError))
            else None
        )
        parts = [str(error).split("\nSee https:")[0], *([str(cause)] if cause is not None else [])]
        text = _NOISE.sub("", ": ".join(part for part in parts if part.strip()))
        text = one_line(text) or type(error).__name__
        if found := re.fullmatch(
            r"Error merging override (.*): Cannot merge DictConfig with ListConfig.*", text
        ):
            raise ConfigError(f"{found[1]}: must be a list: [a,b], and not {{a: b}}") from error
        raise ConfigError(f"{text}{_hint_on_defaults(text)}") from error


def _hint_on_defaults(message: str) -> str:
    """What to do about a defaults list that Hydra refuses: its own advice misleads in the files of
    a group.
    """
    found = re.match(r"In '(\w+)/(\S+)': Could not override '([\w/]+)@\1\.", message)
    if found:
        return f" The first line of {found[1]}/{found[2]}.yaml must be '# @package _global_'"
    found = re.match(r"In '(\w+)/\S+': Could not override '\1/([\w/]+)", message)
    if found:
        return f" Write it with a slash: 'override /{found[2]}: …'"
    found = re.match(r"In '\S+': Could not override '([\w/]+)'\. No match", message)
    if found:
        return f" To add a group that no defaults list has, write '/{found[1]}: …' without override"
    found = re.match(r"Multiple values for ([\w/]+)\.", message)
    if found:
        return f"; in an experiment, or another group's file, write 'override /{found[1]}: …'"
    if "defaults must be a list" in message:
        return ": write defaults: [override /pruner: median]"
    return ""


def resolved(config: DictConfig, section: str) -> Any:
    """Returns a section as plain containers, its interpolations resolved.

    Raises:
        ConfigError: one of them cannot be; names the section and the reason.
    """
    if section not in config:
        return None
    try:
        node = config[section]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{section}{_where(section, error)}: {one_line(str(error).splitlines()[0])}"
        ) from error


def declared(config: DictConfig, section: str) -> Any:
    """Returns ``grid`` or ``search`` as plain containers. What makes up a declaration is resolved
    by the whole config. Values in it are not: each trial resolves them by its params.

    Raises:
        ConfigError: an interpolation cannot be resolved; names the section and the reason.
    """
    if section not in config:
        return None
    try:
        return _declarations(config[section], section)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{section}{_where(section, error)}: {one_line(str(error).splitlines()[0])}"
        ) from error


def _declarations(node: Any, path: str) -> Any:
    if not isinstance(node, DictConfig):
        return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    found: dict[Any, Any] = {}
    for key in map(str, node):
        text = node._get_node(key)._value()  # type: ignore[union-attr]
        if key == "when" and OmegaConf.is_config(node[key]):
            found[key] = OmegaConf.to_container(node[key], resolve=True)
        elif isinstance(text, str) and "${" in text and _lists_values(text, f"{path}.{key}"):
            found[key] = text
        else:
            found[key] = _declarations(node[key], f"{path}.{key}")
    return found


def _lists_values(text: str, path: str) -> bool:
    """Whether a declaration that interpolates is a sweep over values which do: ``choice(${lr},
    0.1)``.
    """
    try:
        return isinstance(grammar.parse_value(text, source=path), ChoiceSweep)
    except ConfigError:
        return False


def _where(section: str, error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", None) or "")
    return key.removeprefix(section) if key.startswith(f"{section}.") else ""


def one_line(text: str) -> str:
    return " ".join(text.split())
