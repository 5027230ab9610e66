"""From a composed config to the `StudySpec` that is stored: every rule of a study is checked here,
before any work starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from orchestrator.config.command import command_objective
from orchestrator.config.composing import Composed
from orchestrator.config.functions import check_function
from orchestrator.config.grammar import check_finite
from orchestrator.config.infeasible import infeasible
from orchestrator.config.probes import probes
from orchestrator.config.schema import STUDY_SECTIONS, checked
from orchestrator.config.space import Space
from orchestrator.config.stopping import stop_when
from orchestrator.config.translate import resolved
from orchestrator.config.warm_start import warm_start
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import (
    Budget,
    Direction,
    JSONValue,
    Limits,
    StudySpec,
    leaf_paths,
    value_label,
)
from orchestrator.overlay import overlay
from orchestrator.program import is_program
from orchestrator.settings import (
    ALLOCATION,
    MAX_TRIALS,
    PRUNERS,
    SAMPLERS,
    BudgetSettings,
    HyperbandSettings,
    RunnerSettings,
    StudySettings,
    chosen,
)

S = TypeVar("S")
MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_METRIC = 100
_FEWEST_BEFORE = 10  # with fewer trials, the model does not say which is the best
_MAX_PARAM = 512  # Optuna's column for parameter names
_DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")
# resolvers that Hydra registers where it runs
_LAUNCH_ONLY = re.compile(r"\$\{(hydra|now|python_version):")
_FROM_PARAMS = re.compile(r"(?<!\\)(\$\{\s*(?:oc\.select:\s*)?)params\.")


def study_spec(composed: Composed) -> StudySpec:
    """Returns everything that a launch sets for a study, checked and without anything of this host.

    Raises:
        ConfigError: the first rule that is broken, in one line.
    """
    config = composed.config
    study = checked("study", StudySettings, resolved(config, "study") or {})
    name = name_of(study.name)
    directions, metrics = _goals(study)
    params = _params(config)
    space = composed.space
    space.check(params)
    _check_lengths(space)
    _check_values(space, params)
    _check_resolution(params, space)
    objective = _objective(config, params, space, metrics)
    grid, search = tuple(space.grid.values()), tuple(space.search.values())
    budget = _budget(config, space, metrics)
    spec = StudySpec(
        name=name,
        directions=directions,
        metrics=metrics,
        objective=objective,
        params=params,
        grid=grid,
        search=search,
        budget=budget,
        allocation=_allocation(config),
        stop_when=stop_when(resolved(config, "stop_when"), space, metrics, budget),
        infeasible=infeasible(resolved(config, "infeasible"), space),
        sampler=_chosen("sampler", SAMPLERS, resolved(config, "sampler"), "tpe"),
        pruner=_chosen("pruner", PRUNERS, resolved(config, "pruner"), "none"),
        runner=_runner(config),
        seed=_seed_of(name) if study.seed is None else study.seed,
        priority=study.priority,
        bounds=_bounds(study.bounds, metrics),
        probes=_probes(config, params, space),
        config=_stored(config),
    )
    sources, enqueued = warm_start(
        resolved(config, "warm_start"), resolved(config, "enqueue_best"), spec
    )
    return dataclasses.replace(spec, warm_start=sources, enqueue_best=enqueued)


def extends(composed: Composed) -> bool:
    """Whether the launch may change the study of its name (`study.extend`)."""
    study = checked("study", StudySettings, resolved(composed.config, "study") or {})
    return study.extend


def check_inherited(spec: StudySpec) -> None:
    """Checks what a stage's study is with values of an earlier stage in place.

    Raises:
        ConfigError: a path lies below a plain value, or an interpolation finds nothing.
    """
    space = Space()
    space.grid = {axis.path: axis for axis in spec.grid}
    space.search = {searched.path: searched for searched in spec.search}
    space.check(spec.params)
    _check_resolution(spec.params, space)


def name_of(name: str | None) -> str:
    """The name of a study, checked.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    if name is None:
        raise ConfigError(
            "study.name must be given: study.name=my-study, or an experiment that sets it "
            "(experiment=digits)"
        )
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ConfigError(
            f"study.name={name!r}: must consist of letters, digits, '.', '_' and '-', at most "
            f"{MAX_NAME}, and begin with a letter or digit"
        )
    return name


def _seed_of(name: str) -> int:
    """The seed of a study without one: the same wherever and whenever the study is launched."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _goals(study: StudySettings) -> tuple[tuple[Direction, ...], tuple[str, ...]]:
    directions = study.direction if isinstance(study.direction, list) else [study.direction]
    metrics = study.metric if isinstance(study.metric, list) else [study.metric]
    for direction in directions:
        if direction not in _DIRECTIONS:
            guess = did_you_mean(str(direction), _DIRECTIONS)
            raise ConfigError(
                f"study.direction={direction}: must be minimize or maximize, or a list of "
                f"them{guess}"
            )
    for metric in metrics:
        if not isinstance(metric, str) or not metric:
            raise ConfigError(f"study.metric={metric!r}: must be a word, or a list of words")
        if not metric.isprintable() or metric != metric.strip() or len(metric) > _MAX_METRIC:
            raise ConfigError(
                f"study.metric={metric[:_MAX_METRIC]!r}: must be printable, at most {_MAX_METRIC} "
                "characters, without leading or trailing blanks"
            )
    if not directions or len(directions) != len(metrics):
        raise ConfigError(
            f"study.direction has {len(directions)} and study.metric {len(metrics)}: name one "
            "metric for each direction, such as study.direction=[maximize,minimize] "
            "study.metric=[accuracy,latency]"
        )
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"study.metric={metrics}: the names must differ")
    return tuple(directions), tuple(metrics)


def _bounds(bounds: Any, metrics: tuple[str, ...]) -> tuple[Limits, ...]:
    """The limits of each metric; empty if none has any."""
    if bounds is None:
        return ()
    several = len(metrics) > 1
    pairs = bounds if several else [bounds]
    of_each = isinstance(pairs, list) and len(pairs) == len(metrics)
    if not of_each or (several and any(isinstance(pair, int | float | str) for pair in pairs)):
        raise ConfigError(
            f"study.bounds={value_label(bounds)}: must be a list of {len(metrics)} pairs, one each "
            f"for {', '.join(metrics)}, such as [[0,1],[0,null]]; null for a metric without limits"
        )
    limits = tuple(_limits(pair, bounds) if pair is not None else (None, None) for pair in pairs)
    return limits if any(limit != (None, None) for limit in limits) else ()


def _limits(pair: Any, bounds: Any) -> Limits:
    source = f"study.bounds={value_label(bounds)}"
    numbers = isinstance(pair, list) and all(
        limit is None
        or (isinstance(limit, int | float) and not isinstance(limit, bool) and _is_finite(limit))
        for limit in pair
    )
    if not numbers or len(pair) != 2:
        raise ConfigError(
            f"{source}: must be the least and the greatest value, such as [0,1]; null for no limit"
        )
    low, high = (None if limit is None else float(limit) for limit in pair)
    if low is not None and high is not None and low >= high:
        raise ConfigError(
            f"{source}: the least value {low:g} must be less than the greatest {high:g}"
        )
    return low, high


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond any float
        return False


def _mapping(config: DictConfig, section: str) -> dict[str, JSONValue]:
    container: Any = OmegaConf.to_container(config, resolve=False)
    node = container.get(section) or {}
    if not isinstance(node, dict):
        raise ConfigError(f"{section}={node!r}: must be a mapping")
    return node


def _params(config: DictConfig) -> dict[str, JSONValue]:
    params = _mapping(config, "params")
    _check_keys(params, "params")
    for path in leaf_paths(params):
        value = _at_leaf(params, path)
        check_finite(value, f"params.{path}")
        _check_interpolations(value, f"params.{path}", params)
    return params


def _check_values(space: Space, params: Mapping[str, JSONValue]) -> None:
    """Checks the values that axes and choices put into params."""
    for axis in space.grid.values():
        for value, content in zip(axis.values, axis.contents or axis.values, strict=True):
            source = (
                f"grid.{axis.path}"
                if isinstance(content, str)
                else f"{axis.path}={value_label(value)}"
            )
            check_finite(content, source)
            if axis.contents:
                _check_keys(content, source)
            _check_interpolations(content, source, params)
    for searched in space.search.values():
        for choice in searched.choices:
            source = (
                f"search.{searched.path}"
                if isinstance(choice, str)
                else f"{searched.path}={value_label(choice)}"
            )
            _check_interpolations(choice, source, params)


def _check_interpolations(value: JSONValue, source: str, params: Mapping[str, JSONValue]) -> None:
    """Checks the text of a value that each trial resolves, with params as root.

    Raises:
        ConfigError: it names Hydra, which is not there, or params as if they were a section.
    """
    for path, text in _texts(value, ""):
        where = f"{source}: {path}={text}" if path else f"{source}={text}"
        if _LAUNCH_ONLY.search(text):
            raise ConfigError(
                f"{where}: this is resolved on the worker, where Hydra does not run; write the "
                "value"
            )
        if _FROM_PARAMS.search(text) and "params" not in params:
            right = _FROM_PARAMS.sub(r"\1", text)
            raise ConfigError(f"{where}: interpolations see params as their root: write {right}")


def _texts(value: JSONValue, above: str) -> Iterator[tuple[str, str]]:
    """All text in a value, with its path."""
    if isinstance(value, str):
        yield above, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(item, f"{above}.{key}" if above else str(key))


def _check_keys(node: Mapping[Any, Any], above: str) -> None:
    for key, value in node.items():
        if not isinstance(key, str):
            raise ConfigError(f"{above}: the key {key!r} must be a string: quote it")
        if not key or not key.isprintable():
            raise ConfigError(
                f"{above}: the key {key!r} must be printable characters, at least one"
            )
        if "." in key:
            raise ConfigError(
                f"{above}: the key {key!r} contains a dot; nest it: "
                f"{': {'.join(key.split('.'))}: …{'}' * key.count('.')}"
            )
        if isinstance(value, Mapping):
            _check_keys(value, f"{above}.{key}")


def _check_lengths(space: Space) -> None:
    for section, paths in (("grid", space.grid), ("search", space.search)):
        for path in paths:
            if len(path) > _MAX_PARAM:
                raise ConfigError(
                    f"{section}.{path[:40]}…: a parameter's name has at most {_MAX_PARAM} "
                    f"characters, this one has {len(path)}"
                )


def _at_leaf(node: Any, path: str) -> Any:
    for part in path.split("."):
        node = node[part]
    return node


def _check_resolution(params: Mapping[str, JSONValue], space: Space) -> None:
    """Checks that every interpolation in params finds what it names, with params as root and a
    trial's values in place.

    What only a worker can answer (its environment, resolvers that the user's code registers) is
    left to the worker.
    """
    for of_value, values in space.examples():
        try:
            _resolve(params, values)
        except ConfigError as error:
            raise ConfigError(f"{of_value}: {error}" if of_value else str(error)) from error


def _resolve(params: Mapping[str, JSONValue], values: Mapping[str, JSONValue]) -> None:
    root = OmegaConf.create(dict(params))
    overlay(root, values)
    container: Any = OmegaConf.to_container(root, resolve=False)
    for path in leaf_paths(container):
        try:
            node = OmegaConf.select(root, path, throw_on_missing=True)
            if OmegaConf.is_config(node):
                OmegaConf.to_container(node, resolve=True)
        except InterpolationKeyError as error:
            guess = ""
            match = re.search(r"Interpolation key '(.+?)' not found", str(error))
            if match:
                guess = did_you_mean(
                    match[1], [leaf for leaf in leaf_paths(container) if leaf != path]
                )
            raise ConfigError(
                f"params.{path}: {_first_line(error)}{guess}; interpolations see params as their "
                "root"
            ) from error
        except MissingMandatoryValue as error:
            raise ConfigError(f"params.{path} must be given: {path}=… (it is ???)") from error
        except InterpolationResolutionError as error:
            if "Recursive" in str(error):
                raise ConfigError(f"params.{path}: its interpolation refers to itself") from error
        except OmegaConfBaseException as error:
            raise ConfigError(f"params.{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].strip()


def _objective(
    config: DictConfig, params: Mapping[str, JSONValue], space: Space, metrics: tuple[str, ...]
) -> dict[str, JSONValue]:
    objective = _mapping(config, "objective")
    if is_program(objective):
        return command_objective(objective, params, space, metrics)
    objective.pop("command", None)
    check_function(
        "objective",
        objective,
        missing="objective._target_=package.module.function, or an experiment that sets it; or "
        "objective.command for a program",
        example="package.module.function",
    )
    for key, value in objective.items():
        check_finite(value, f"objective.{key}")
        _check_interpolations(value, f"objective.{key}", params)
    return objective


def _probes(
    config: DictConfig, params: Mapping[str, JSONValue], space: Space
) -> dict[str, dict[str, JSONValue]]:
    declared = probes(_mapping(config, "probes"), space)
    for name, probe in declared.items():
        for key, value in probe.items():
            check_finite(value, f"probes.{name}.{key}")
            _check_interpolations(value, f"probes.{name}.{key}", params)
    return declared


def _budget(config: DictConfig, space: Space, metrics: Sequence[str]) -> Budget:
    budget = checked("budget", BudgetSettings, resolved(config, "budget") or {})
    cells = 1
    for axis in space.grid.values():
        cells *= len(axis.values)
    per_cell = budget.per_cell
    if cells == 1 and budget.trials is not None:  # the one cell gets all there is
        per_cell = min(per_cell, budget.trials)
    shares = cells * per_cell
    if budget.trials is None and not space.grid:
        raise ConfigError("budget.trials must be given: without a grid it cannot be derived")
    if budget.trials is None and shares > MAX_TRIALS:
        raise ConfigError(
            f"budget.per_cell={budget.per_cell} for {cells} cells makes {shares:,} trials; must "
            f"be at most {MAX_TRIALS:,}"
        )
    trials = shares if budget.trials is None else budget.trials
    if shares > trials:
        raise ConfigError(
            f"budget.per_cell={budget.per_cell} for {cells} cells makes {shares} trials, more "
            f"than budget.trials={trials}; raise budget.trials to {shares}, or lower "
            "budget.per_cell or the grid"
        )
    if budget.confirm and len(metrics) > 1:
        raise ConfigError(
            f"budget.confirm={budget.confirm}: with several objectives there is no one best "
            "configuration to confirm; must be 0"
        )
    if budget.confirm and trials - budget.confirm < _FEWEST_BEFORE:
        raise ConfigError(
            f"budget.confirm={budget.confirm}: {_FEWEST_BEFORE} trials must come before those that "
            f"confirm, and budget.trials={trials} leaves {trials - budget.confirm}"
        )
    if budget.confirm > trials - shares:
        raise ConfigError(
            f"budget.confirm={budget.confirm}: of budget.trials={trials}, {trials - shares} are "
            f"left beyond the guaranteed ones ({cells} cells with {per_cell} each); raise "
            f"budget.trials to {shares + budget.confirm}, or lower budget.confirm or "
            "budget.per_cell"
        )
    return Budget(**{**vars(budget), "trials": trials, "per_cell": per_cell})


def _allocation(config: DictConfig) -> str:
    allocation = resolved(config, "allocation") or ALLOCATION.default
    rule = ALLOCATION.rule
    if rule is not None and not rule.holds(allocation):
        raise ConfigError(
            f"allocation={allocation}: must be "
            f"{rule.words}{did_you_mean(str(allocation), rule.choices)}"
        )
    return str(allocation)


def _runner(config: DictConfig) -> RunnerSettings:
    values = resolved(config, "runner") or {}
    # one word says the same as a list of it
    if isinstance(values, dict) and isinstance(values.get("retry_on"), str):
        values["retry_on"] = [values["retry_on"]]
    check_finite(values, "runner")
    return checked("runner", RunnerSettings, values)


def _chosen(section: str, schemas: Mapping[str, type[S]], values: Any, default: str) -> S:
    """Returns the sampler or pruner that a section names, with its settings."""
    values = {"name": default} if values is None else values
    schema = chosen(section, schemas, values.get("name") if isinstance(values, dict) else values)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{section}={values!r}: {section} is a section; choose {section}={values} on the "
            f"command line, or 'override /{section}: {values}' in a defaults list"
        )
    own, every = _names(schema), set().union(*map(_names, schemas.values()))
    # left over from another one
    if foreign := [key for key in values if key not in own and key in every]:
        raise ConfigError(
            f"{section}.{foreign[0]}: {section}={values['name']} has no such option; choose the "
            f"group, {section}={values['name']} or 'override /{section}: {values['name']}' in a "
            f"defaults list, instead of setting {section}.name"
        )
    settings = checked(section, schema, values)
    if isinstance(settings, HyperbandSettings) and settings.max_resource != "auto":
        least, most = settings.min_resource, settings.max_resource
        if most < least:
            raise ConfigError(
                f"pruner.max_resource={most}: must be at least pruner.min_resource={least}"
            )
    return settings


def _names(schema: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(schema)}


def _stored(config: DictConfig) -> str:
    sections = [section for section in STUDY_SECTIONS if section in config]
    if not config.get("stages"):  # a study is written as before there were any
        sections = [section for section in sections if section != "stages"]
    ordered = OmegaConf.create({section: config._get_node(section) for section in sections})
    with open_dict(ordered):
        ordered.study.pop("extend", None)  # of one launch
    return OmegaConf.to_yaml(ordered, resolve=False)
