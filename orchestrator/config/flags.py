"""Hydra's own flags: which there are, and the text of those that only show something."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.compose import Composed
from orchestrator.config.loader import Loader
from orchestrator.config.translate import translated
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.passwords import mask
from orchestrator.settings.describe import annotated

_REFUSED = {
    "multirun": "-m/--multirun: launch runs a sweep by itself, as one study; leave the flag out:"
    " orchestrator launch data.batch_size=32,64",
    "config_path": "--config-path: add a directory of your own with --config-dir DIR",
    "experimental_rerun": "--experimental-rerun: the same launch again continues its study",
    "shell_completion": "--shell-completion is not supported",
}


@dataclass(frozen=True)
class Flags:
    """A command line after its subcommand: Hydra's flags, and the overrides among them in order.

    At most one of `cfg`, `info`, `help`, `hydra_help` and `version` is set: what to show instead of
    running.
    """

    overrides: tuple[str, ...] = ()
    cfg: Literal["job", "hydra", "all"] | None = None
    resolve: bool = False
    package: str | None = None
    config_dir: str | None = None
    config_name: str = "config"
    help: bool = False
    hydra_help: bool = False
    info: str | None = None
    version: bool = False

    @property
    def shows(self) -> bool:
        """Whether the command line asks for a text of `show` instead of a run."""
        return bool(self.cfg or self.info or self.help or self.hydra_help)


def parse_flags(argv: Sequence[str], others: Collection[str] = ()) -> Flags:
    """Returns the flags and overrides of a command line; they may be mixed in any order.

    Args:
        others: flags of the command's own, taken out before, which an unknown one may have meant.

    Raises:
        ConfigError: an unknown flag, one that has no meaning here (the message shows the right
            form), or two that exclude each other.
    """
    try:
        arguments = _parser(others).parse_intermixed_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for name, message in _REFUSED.items():
        if getattr(arguments, name):
            raise ConfigError(message)
    showing = [
        name
        for name in ("cfg", "info", "help", "hydra_help", "version", "run")
        if getattr(arguments, name)
    ]
    if len(showing) > 1:
        raise ConfigError(
            "only one of "
            + ", ".join(f"--{name.replace('_', '-')}" for name in showing)
            + " can be given"
        )
    if (arguments.resolve and not (arguments.cfg or arguments.help)) or (
        arguments.package and not arguments.cfg
    ):
        raise ConfigError("--resolve and --package belong to --cfg")
    return Flags(
        overrides=tuple(arguments.overrides),
        cfg=arguments.cfg,
        resolve=arguments.resolve,
        package=arguments.package,
        config_dir=arguments.config_dir,
        config_name=arguments.config_name or "config",
        help=arguments.help,
        hydra_help=arguments.hydra_help,
        info=arguments.info,
        version=arguments.version,
    )


def _parser(others: Collection[str] = ()) -> argparse.ArgumentParser:
    parser = get_args_parser()
    parser.allow_abbrev = False
    for action in parser._actions:
        if action.dest == "version":  # Hydra's prints Hydra's version and exits
            parser._remove_action(action)
            for option in action.option_strings:
                parser._option_string_actions.pop(option)
            break
    parser.add_argument("--version", action="store_true", help="Show the version and exit")
    candidates = [
        *others,
        *(option for action in parser._actions for option in action.option_strings),
    ]

    def error(message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: ")
        guess = did_you_mean(unknown.split()[0], candidates) if unknown else ""
        raise ConfigError(mask(f"{message}{guess}"))

    parser.error = error  # type: ignore[method-assign]
    return parser


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
