"""The objective that is a command, checked against the study's parameters and metrics before any
work starts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator import program
from orchestrator.config.grammar import check_finite
from orchestrator.config.space import Space
from orchestrator.config.words import program_words
from orchestrator.errors import ConfigError
from orchestrator.model import JSONValue, at, has, leaf_paths
from orchestrator.overlay import overlay


def command_objective(
    objective: Mapping[str, JSONValue],
    params: Mapping[str, JSONValue],
    space: Space,
    metrics: tuple[str, ...],
) -> dict[str, JSONValue]:
    """Returns the objective in its one form: the command as a list of words, defaults left out.

    Raises:
        ConfigError: The first rule that is broken, in one line.
    """
    check_finite({key: value for key, value in objective.items() if value is not None}, "objective")
    command = program.read(objective)
    command.result_of(metrics)
    _check_flags(command, params, space)
    options = [axis.path for axis in space.grid.values() if axis.of_program]
    for _, values in space.examples():
        root = OmegaConf.create(dict(params))
        overlay(root, values)
        _check_parameters(command, root, options)
    if command.appends_overrides:
        for path, offered in _structured_values(space):
            program_words({path: offered})
    form: dict[str, JSONValue] = {"command": list(command.words)}
    if command.result != "last":
        form["result"] = command.result
    if command.overrides != "auto":
        form["overrides"] = command.overrides
    if command.hydra != "auto":
        form["hydra"] = command.hydra
    return form


def _check_parameters(command: program.Program, root: DictConfig, options: Collection[str]) -> None:
    container: Any = OmegaConf.to_container(root, resolve=False)
    program.check_placeholders(
        command,
        lambda name: name in options or has(container, name) or _resolves(root, name),
        leaf_paths(container),
    )
    if command.appends_overrides:
        program_words(container)


def _check_flags(command: program.Program, params: Mapping[str, JSONValue], space: Space) -> None:
    """Raises ConfigError where a flag's parameter has a value other than true and false; what is
    resolved in a trial is checked there.
    """
    for flag in command.flags:
        if flag.name in program.FACTS:
            if flag.name != "trial.resumed":
                raise ConfigError(
                    f"{program.FIELD}: {{flag:{flag.name}}}: {flag.name} is neither true nor false"
                )
            continue
        axis, searched = space.grid.get(flag.name), space.search.get(flag.name)
        values: tuple[JSONValue, ...] = ()
        if axis is not None:
            values = axis.values
        elif searched is not None:
            values = searched.choices or (searched.low,)
        elif has(params, flag.name):
            values = (at(params, flag.name),)
        for value in values:
            if not (isinstance(value, str) and "${" in value):
                flag.word(value)


def _resolves(root: DictConfig, name: str) -> bool:
    """Whether something is there once interpolations are followed: `optim.lr` of ``optim:
    ${presets.adam}``.
    """
    absent = object()
    try:
        return OmegaConf.select(root, name, default=absent) is not absent
    except OmegaConfBaseException:
        return False


def _structured_values(space: Space) -> Iterator[tuple[str, JSONValue]]:
    """The lists and mappings that a parameter may become; any other value has a word."""
    offered = [(path, axis.contents or axis.values) for path, axis in space.grid.items()]
    offered += [(path, searched.choices) for path, searched in space.search.items()]
    for path, values in offered:
        yield from ((path, value) for value in values if isinstance(value, (list, Mapping)))
