"""Hydra's own flags: which there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.passwords import mask

if TYPE_CHECKING:
    import argparse

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
    if not any(word.startswith("-") for word in argv):
        return Flags(tuple(argv))
    import argparse  # with Hydra slow to import, and seldom needed

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
    from hydra._internal.utils import get_args_parser

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
