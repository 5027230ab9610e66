"""What ``orchestrator COMMAND --help`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from orchestrator import config
from orchestrator.cli.call import Call
from orchestrator.cli.commands import COMMANDS
from orchestrator.errors import ConfigError
from orchestrator.settings import HOST, SECTIONS_OF_STUDY, Knob, knobs
from orchestrator.settings.describe import commented, remark, written

_FLAGS: Final = """Flags: --cfg job|hydra|all [--resolve] [--package KEY], --config-dir DIR,
       --config-name NAME, --info, --hydra-help, --help, --version
"""
_WIDTH: Final = 100


def of_command(call: Call) -> str:
    """The help of a command other than `launch`: its words, and the settings that matter to it.

    Raises:
        ConfigError: ``--resolve``, as only defaults are shown.
    """
    if call.flags.resolve:
        raise ConfigError(f"--resolve and --package belong to --cfg: orchestrator {call.command}")
    command = COMMANDS[call.command]
    pairs = [(f"  {name}={written(knob)}", remark(knob)) for name, knob in _knobs(command.settings)]
    if "study.name" in command.settings:
        pairs[0] = ("  study.name=NAME", command.study)
    settings = "\n".join(["Settings that matter to it:", *commented(pairs)])
    return f"{usage(call.command)}\n{settings}\n\n{_FLAGS}"


def of_launch(call: Call) -> str:
    """The help of `launch`: its words, what overrides do, and the config that these words make.

    Raises:
        ConfigError: as composing the config does.
    """
    return f"{usage('launch')}\n{config.show(call.flags, call.composed)}\n{_FLAGS}"


def usage(name: str) -> str:
    """The first part of ``orchestrator NAME --help``: what can be typed, without the settings."""
    command = COMMANDS[name]
    optional = [f"[{word}]" for word in (*command.switches, *command.words)]
    actions = ["|".join(command.actions)] if command.actions else []
    line = " ".join(["orchestrator", name, *actions, *optional, "[flag …] [key=value …]"])
    indent = " " * len(f"usage: orchestrator {name} ")
    parts = [
        "\n".join(textwrap.wrap(f"usage: {line}", _WIDTH, subsequent_indent=indent)),
        "\n".join(textwrap.wrap(command.summary, _WIDTH)),
    ]
    if rows := {**command.actions, **command.words, **command.switches}:
        parts.append(_table("Its own words", rows))
    if command.overrides:
        parts.append(f"key=value: {command.overrides}")
    if command.examples:
        parts.append("\n".join(f"  orchestrator {example}" for example in command.examples))
    return "\n\n".join(parts) + "\n"


def _knobs(names: tuple[str, ...]) -> Iterator[tuple[str, Knob]]:
    """The settings of these sections, or single ones, by their dotted names."""
    schemas: Mapping[str, type[Any]] = {**SECTIONS_OF_STUDY, **HOST}
    for name in names:
        section, _, key = name.partition(".")
        for found, knob in knobs(schemas[section]).items():
            if key in ("", found):
                # Its group is chosen, which has a file of its own.
                yield section if found == "kind" else f"{section}.{found}", knob


def _table(title: str, rows: Mapping[str, str]) -> str:
    column = max(map(len, rows)) + 2
    lines = [f"{title}:"]
    for word, meaning in rows.items():
        lines += textwrap.wrap(
            meaning,
            _WIDTH,
            initial_indent=f"  {word:<{column}}",
            subsequent_indent=" " * (column + 2),
        )
    return "\n".join(lines)
