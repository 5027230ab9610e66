"""The sections of a composed config, and how one of them is checked against its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from orchestrator.errors import ConfigError
from orchestrator.settings import HOST, PRUNERS, SAMPLERS, SECTIONS_OF_STUDY, type_words, unknown
from orchestrator.settings.knob import check_rule, takes_whole

T = TypeVar("T")
STUDY_SECTIONS = (
    "study",
    "objective",
    "params",
    "grid",
    "search",
    "probes",
    "warm_start",
    "enqueue_best",
    "stages",
    "budget",
    "allocation",
    "stop_when",
    "infeasible",
    "sampler",
    "pruner",
    "runner",
)  # the order in which the stored config shows them
SECTIONS = (*STUDY_SECTIONS, *HOST)


def settings() -> list[str]:
    """Every dotted setting whose name is fixed: the candidates for a misspelt one."""
    schemas: list[tuple[str, type[Any]]] = list(SECTIONS_OF_STUDY.items())
    schemas += [("sampler", schema) for schema in SAMPLERS.values()]
    schemas += [("pruner", schema) for schema in PRUNERS.values()]
    schemas += list(HOST.items())
    names = [
        f"{section}.{f.name}" for section, schema in schemas for f in dataclasses.fields(schema)
    ]
    tops = ("allocation", "warm_start", "enqueue_best")
    return list(dict.fromkeys([*names, "objective._target_", "objective.command", *tops]))


def checked(section: str, schema: type[T], values: Any) -> T:
    """Returns `schema` filled with the resolved `values`: every key exists, every type and rule is
    kept.

    Raises:
        ConfigError: names the field, the value (unless it may hold a password) and the rule.
    """
    from omegaconf import OmegaConf  # what only reads the names above does not need it
    from omegaconf.errors import OmegaConfBaseException

    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{section}={values!r}: {section} is a section; set {section}.{next(iter(fields))}=… "
            "and the like"
        )
    filled = OmegaConf.structured(schema)
    OmegaConf.set_readonly(filled, False)  # a frozen dataclass makes a frozen config
    for key, value in values.items():
        if key == "defaults":
            raise ConfigError(
                f"{section}.defaults: a defaults list stands at the top level of its file, not in "
                "a section"
            )
        if key not in fields:
            raise unknown(section, str(key), schema)
        if value == "???":
            raise ConfigError(f"{section}.{key} must be given: {section}.{key}=…")
        # YAML and Hydra read 1e6 as a float
        if takes_whole(fields[key]) and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            filled[key] = value
        except OmegaConfBaseException as error:
            quoted = "" if fields[key].metadata["knob"].secret else f"={value!r}"
            raise ConfigError(
                f"{section}.{key}{quoted}: must be {type_words(fields[key])}"
            ) from error
        check_rule(section, fields[key], filled[key], typed=value)
    result: T = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return result
