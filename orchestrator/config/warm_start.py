"""``warm_start`` and ``enqueue_best``: what a study takes from others. Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec, value_label
from orchestrator.settings import FREE, MOST_SOURCES


def warm_start(declared: Any, best: Any, spec: StudySpec) -> tuple[tuple[str, ...], int]:
    """Returns the names of the sources, and how many of their best configurations run first.

    Args:
        declared: what the config says under ``warm_start``: a list of names, or one name.
        best: and under ``enqueue_best``.
        spec: the study without them.

    Raises:
        ConfigError: the first rule that is broken, in one line.
    """
    sources = _names(declared, spec.name)
    best, rule = 0 if best is None else best, FREE["enqueue_best"].rule
    assert rule is not None
    if not isinstance(best, int) or isinstance(best, bool) or not rule.holds(best):
        raise ConfigError(f"enqueue_best={value_label(best)}: must be a whole number {rule.words}")
    if best and not sources:
        raise ConfigError(f"enqueue_best={best}: of which study? Name it: warm_start=[other-study]")
    if best > spec.budget.trials:
        raise ConfigError(
            f"enqueue_best={best}: must be at most budget.trials={spec.budget.trials}, of which "
            "they are a part"
        )
    if not sources:
        return (), 0
    where = f"warm_start={value_label(list(sources))}"
    if len(spec.directions) > 1:
        raise ConfigError(
            f"{where}: a study with several objectives cannot be warm started; leave it out"
        )
    if not spec.learns and not best:
        raise ConfigError(
            f"{where}: sampler={spec.sampler.name} with allocation={spec.allocation} learns from "
            "no trial, and so from no other study; choose sampler=gp or sampler=tpe, or "
            "allocation=adaptive, or run the best of the others first: enqueue_best=3"
        )
    return sources, best


def _names(declared: Any, own: str) -> tuple[str, ...]:
    declared = [] if declared is None else declared
    names = [declared] if isinstance(declared, str) else declared
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(
            f"warm_start={value_label(declared)}: must be a list of names of studies, such as "
            "warm_start=[digits]"
        )
    if len(names) > MOST_SOURCES:
        raise ConfigError(
            f"warm_start: {len(names)} studies are named; must be at most {MOST_SOURCES}"
        )
    for place, name in enumerate(names):
        if name == own:
            raise ConfigError(f"warm_start: a study cannot be warm started from itself ({own})")
        if name in names[:place]:
            raise ConfigError(f"warm_start: {value_label(name)} is named twice")
    return tuple(names)
