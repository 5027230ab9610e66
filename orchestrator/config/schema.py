"""The settings: one dataclass a section, each field with its type, its default and its rule.

Not frozen: OmegaConf refuses to fill frozen ones (`ReadonlyConfigError`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import ConfigError, did_you_mean

T = TypeVar("T")
Rule = Callable[[Any], str | None]
"""Returns what a value must be, or None if it is."""
MAX_TRIALS = 10_000_000  # a ticket each in the database
_MAX_S = 10_000_000  # some four months: no timer or interval of the database overflows


def _at_least(low: int) -> Rule:
    return lambda value: None if value >= low else f"must be at least {low}"


def _within(low: int, high: int) -> Rule:
    def rule(value: Any) -> str | None:
        if not value >= low:
            return f"must be at least {low:,}"
        return None if value <= high else f"must be at most {high:,}"

    return rule


def _above(low: float, high: float = math.inf) -> Rule:
    def rule(value: Any) -> str | None:
        if not value > low:
            return f"must be greater than {low:g}"
        return None if value <= high else f"must be at most {high:,}"

    return rule


def _one_of(*words: str) -> Rule:
    return lambda value: (
        None
        if value in words
        else f"must be one of {', '.join(words)}{did_you_mean(str(value), words)}"
    )


def _share(value: Any) -> str | None:
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def _some(value: Any) -> str | None:
    return None if len(value) else "must name at least one; null means all there are"


def _port(value: Any) -> str | None:
    return None if 1 <= value <= 65535 else "must be a port, 1 to 65535"


def _web_address(value: Any) -> str | None:
    return (
        None
        if re.fullmatch(r"https?://[^/\s]+\S*", value)
        else "must be an address such as https://tuning.example.org"
    )


def _seed(value: Any) -> str | None:
    return None if 0 <= value < 2**32 else "must lie between 0 and 2**32 - 1"


def _resource(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return (
        None
        if value == "auto" or whole
        else "must be 'auto' or a whole number of steps, at least 1"
    )


def _failures(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000
    return (
        None
        if value == "auto" or whole
        else "must be 'auto', a whole number of trials, 1 to 1,000,000, or null for never"
    )


def _ruled(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


# ---------------------------------------------------------------------------------------- this host


@dataclass
class StorageConfig:
    """Where studies live: an embedded PostgreSQL of this user (`path`) or a server (`url`, which
    may hold a password).
    """

    kind: str = _ruled("embedded", _one_of("embedded", "postgres"))
    path: Path | None = None
    url: str | None = field(default=None, repr=False, metadata={"shown": False})
    password_file: str | None = None


@dataclass
class WorkerConfig:
    """How this host works: seconds where a name ends in ``_s``; None means "the default of the
    place that uses it".
    """

    count: int | None = _ruled(None, _at_least(0))
    devices: list[int | str] | None = field(default=None, metadata={"rule": _some})
    slots_per_device: int | None = _ruled(None, _at_least(1))
    require_idle: str = _ruled("wait", _one_of("wait", "refuse", "ignore"))
    studies: list[str] | None = None
    idle_timeout_s: float | None = _ruled(None, _within(0, _MAX_S))
    max_trials: int | None = _ruled(None, _at_least(1))
    drain_s: float = _ruled(5.0, _within(0, _MAX_S))
    lease_ttl_s: float = _ruled(60.0, _above(0, _MAX_S))
    heartbeat_s: float = _ruled(10.0, _above(0, _MAX_S))
    on_no_device: str = _ruled("wait", _one_of("wait", "exit"))
    poll_s: float = _ruled(1.0, _above(0, _MAX_S))
    threads: int | None = _ruled(None, _at_least(1))
    prefetch: int = _ruled(1, _within(0, 1))
    allow_targets: list[str] | None = field(default=None, metadata={"rule": _some})
    health_file: Path | None = None


@dataclass
class PathsConfig:
    """Absolute directories: `data` of this user, `runs` where run directories go.

    `checkpoints` and `artifacts` may be fsspec URLs; None is the default of the place that uses
    them.
    """

    data: Path = Path()
    runs: Path = Path()
    checkpoints: str | None = None
    artifacts: str | None = None


@dataclass
class DashboardConfig:
    """Where the dashboard listens, for whom, what they may do, and the `url` at which people find
    it.
    """

    host: str = "127.0.0.1"
    port: int = _ruled(8080, _port)
    hosts: list[str] | None = field(default=None, metadata={"rule": _some})
    url: str | None = _ruled(None, _web_address)
    read_only: bool = False
    password_file: str | None = None


@dataclass
class HostConfig:
    """Every setting of this host, resolved and checked."""

    storage: StorageConfig
    worker: WorkerConfig
    paths: PathsConfig
    dashboard: DashboardConfig


# ---------------------------------------------------------------------------------------- the study


@dataclass
class StudyConfig:
    """Who the study is; `direction` and `metric` are a word or a list of words of the
    same length.
    """

    name: str | None = None
    direction: Any = "minimize"
    metric: Any = "value"
    seed: int | None = _ruled(None, _seed)
    priority: int = _ruled(0, _within(-(2**31), 2**31 - 1))


@dataclass
class BudgetConfig:
    """What may be spent; `hours` of wall time a launch."""

    trials: int | None = _ruled(None, _within(1, MAX_TRIALS))
    per_cell: int = _ruled(1, _within(1, MAX_TRIALS))
    hours: float | None = _ruled(None, _above(0, 100_000))
    max_failures_per_cell: int = _ruled(3, _within(0, 1_000_000))
    max_failures_at_start: Any = field(default="auto", metadata={"rule": _failures})


@dataclass
class InfeasibleConfig:
    """How often a cell may run out of memory on a device type, and the axes along which the need of
    it grows.
    """

    max_per_cell: int | None = _ruled(None, _within(0, 1_000_000))
    monotone: Any = None


@dataclass
class RunnerConfig:
    """How one attempt runs, and how often a trial is: `max_runtime_min` in minutes, `grace_s`
    between TERM and KILL.
    """

    max_runtime_min: float | None = _ruled(None, _above(0))
    grace_s: float = _ruled(5.0, _at_least(0))
    isolation: str = _ruled("trial", _one_of("trial", "worker"))
    start: str = _ruled("forkserver", _one_of("forkserver", "spawn"))
    max_attempts: int = _ruled(5, _at_least(1))
    retries: int = _ruled(0, _within(0, 1_000_000))
    retry_on: list[str] | None = field(default=None, metadata={"rule": _some})
    resume: bool = True
    log_limit_mb: float = _ruled(10.0, _above(0.001, 1_000_000))


@dataclass
class TPEConfig:
    name: str = "tpe"
    n_startup_trials: int = _ruled(10, _at_least(0))
    n_ei_candidates: int = _ruled(24, _at_least(1))


@dataclass
class GPConfig:
    name: str = "gp"
    n_startup_trials: int = _ruled(10, _at_least(1))


@dataclass
class RandomConfig:
    name: str = "random"


@dataclass
class QMCConfig:
    name: str = "qmc"
    qmc_type: str = _ruled("sobol", _one_of("sobol", "halton"))
    scramble: bool = True


@dataclass
class NSGA2Config:
    name: str = "nsga2"
    population_size: int = _ruled(50, _at_least(2))
    mutation_prob: float | None = _ruled(None, _share)
    crossover_prob: float = _ruled(0.9, _share)


@dataclass
class NoPrunerConfig:
    name: str = "none"


@dataclass
class MedianConfig:
    name: str = "median"
    n_startup_trials: int = _ruled(5, _at_least(0))
    n_warmup_steps: int = _ruled(0, _at_least(0))
    interval_steps: int = _ruled(1, _at_least(1))
    within_cell: bool = True


@dataclass
class ASHAConfig:
    name: str = "asha"
    min_resource: int = _ruled(1, _at_least(1))
    reduction_factor: int = _ruled(4, _at_least(2))
    min_early_stopping_rate: int = _ruled(0, _at_least(0))
    within_cell: bool = False


@dataclass
class HyperbandConfig:
    name: str = "hyperband"
    min_resource: int = _ruled(1, _at_least(1))
    max_resource: Any = field(default="auto", metadata={"rule": _resource})
    reduction_factor: int = _ruled(3, _at_least(2))
    within_cell: bool = False


@dataclass
class WilcoxonConfig:
    name: str = "wilcoxon"
    p_threshold: float = _ruled(0.1, _share)
    n_startup_steps: int = _ruled(2, _at_least(0))
    within_cell: bool = True


SAMPLERS: Mapping[str, type[Any]] = {
    "tpe": TPEConfig,
    "gp": GPConfig,
    "random": RandomConfig,
    "qmc": QMCConfig,
    "nsga2": NSGA2Config,
}
PRUNERS: Mapping[str, type[Any]] = {
    "none": NoPrunerConfig,
    "median": MedianConfig,
    "asha": ASHAConfig,
    "hyperband": HyperbandConfig,
    "wilcoxon": WilcoxonConfig,
}
HOST: Mapping[str, type[Any]] = {
    "storage": StorageConfig,
    "worker": WorkerConfig,
    "paths": PathsConfig,
    "dashboard": DashboardConfig,
}
STUDY_SECTIONS = (
    "study",
    "objective",
    "params",
    "grid",
    "search",
    "budget",
    "allocation",
    "infeasible",
    "sampler",
    "pruner",
    "runner",
)  # the order in which the stored config shows them
SECTIONS = (*STUDY_SECTIONS, *HOST)


def settings() -> list[str]:
    """Every dotted setting whose name is fixed: what a misspelt one is compared with."""
    schemas: list[tuple[str, type[Any]]] = [
        ("study", StudyConfig),
        ("budget", BudgetConfig),
        ("runner", RunnerConfig),
    ]
    schemas += [("infeasible", InfeasibleConfig)]
    schemas += [("sampler", schema) for schema in SAMPLERS.values()]
    schemas += [("pruner", schema) for schema in PRUNERS.values()]
    schemas += list(HOST.items())
    names = [
        f"{section}.{f.name}" for section, schema in schemas for f in dataclasses.fields(schema)
    ]
    return list(dict.fromkeys([*names, "objective._target_", "objective.command", "allocation"]))


def checked(section: str, schema: type[T], values: Any) -> T:
    """Returns `schema` filled with the resolved `values`: every key known, every type and rule
    kept.

    Raises:
        ConfigError: names the field, the value (unless it may hold a password) and the rule.
    """
    known = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{section}={values!r}: {section} is a section; set {section}.{next(iter(known))}=… "
            "and the like"
        )
    filled = OmegaConf.structured(schema)
    for key, value in values.items():
        if key not in known:
            guess = did_you_mean(f"{section}.{key}", [f"{section}.{name}" for name in known])
            raise ConfigError(
                f"unknown setting {section}.{key}{guess}; {section} has {', '.join(known)}"
            )
        shown = f"={value!r}" if known[key].metadata.get("shown", True) else ""
        if value == "???":
            raise ConfigError(f"{section}.{key} must be given: {section}.{key}=…")
        try:
            filled[key] = value
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{section}.{key}{shown}: must be {_type_words(known[key])}"
            ) from error
        rule: Rule | None = known[key].metadata.get("rule")
        value = filled[key]
        broken = rule(value) if rule is not None and value is not None else None
        if isinstance(value, float) and not math.isfinite(value):
            broken = "must be a finite number"
        if broken:
            raise ConfigError(f"{section}.{key}{shown}: {broken}")
    result: T = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return result


_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a word",
    "bool": "true or false",
    "Path": "a path",
    "None": "null",
    "list[int | str]": "a list like [0,1] or [cpu]",
    "list[str]": "a list like [a,b]",
}


def _type_words(known: dataclasses.Field[Any]) -> str:
    """The annotation in words: ``int | None`` reads "a whole number or null"."""
    annotation = str(known.type)
    for name in ("list[int | str]", "list[str]"):
        annotation = annotation.replace(name, name.replace(" | ", "/"))
    return " or ".join(_TYPE_WORDS[part.replace("/", " | ")] for part in annotation.split(" | "))
