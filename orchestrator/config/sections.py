"""Which sections a config may have, and which it must have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig

from orchestrator.config.schema import SECTIONS, settings
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.settings import HOST


def section_of(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    node = config.get(section) or {}
    if not isinstance(node, dict):
        raise ConfigError(f"{section}={node!r}: {section} is a section; give it a mapping")
    return node


def check_sections(config: Mapping[str, Any], groups: Collection[str]) -> None:
    for name in config:
        if name == "experiment":
            chosen = config["hydra"]["runtime"]["choices"].get("experiment")
            raise ConfigError(
                f"experiment/{chosen}.yaml: its first line must be '# @package _global_'"
            )
        if name in groups and name not in SECTIONS:
            raise ConfigError(
                f"unknown section {name!r}: for parameters the first line of {name}/*.yaml must "
                f"be '# @package params.{name}', for settings '# @package _global_'"
            )
        if name not in (*SECTIONS, "hydra"):
            guess = did_you_mean(str(name), [*SECTIONS, *settings()])
            raise ConfigError(
                f"unknown section {name!r}{guess}; what the objective reads goes under params: "
                f"params: {{{name}: …}}"
            )


def check_host_sections(config: Mapping[str, Any] | DictConfig, name: str) -> None:
    missing = [section for section in HOST if section not in config]
    if missing:
        if name == "config":
            raise ConfigError(
                "the config.yaml of --config-dir hides the shipped one and has no "
                f"{', '.join(missing)}: give it another name, let it begin with 'defaults: "
                "[config, _self_]', and choose it with --config-name"
            )
        raise ConfigError(
            f"{name}.yaml has no {', '.join(missing)}: let it begin with 'defaults: [config, "
            "_self_]'"
        )
