"""The section ``stop_when``: what is enough before the budget is spent. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config.schema import checked
from orchestrator.errors import ConfigError
from orchestrator.model import Budget, StudySpec, count_label
from orchestrator.settings import StopSettings

if TYPE_CHECKING:
    from orchestrator.config.space import Space


def stop_when(values: Any, space: Space, metrics: Sequence[str], budget: Budget) -> StopSettings:
    """Returns the checked section as it is stored.

    Raises:
        ConfigError: an unknown setting or a value out of range; a rule where it says nothing; a
            scope without a rule.
    """
    settings = checked("stop_when", StopSettings, values or {})
    if not settings.on:
        if settings.scope != "study":
            raise ConfigError(
                f"stop_when.scope={settings.scope}: there is no rule to apply to a cell; set "
                "stop_when.gain or stop_when.patience"
            )
        return settings
    if len(metrics) > 1:
        rule = next(r for r in ("gain", "p", "patience") if getattr(settings, r) is not None)
        raise ConfigError(
            f"stop_when.{rule}={getattr(settings, rule)}: several objectives have no one best "
            "value that could stop improving; must be null"
        )
    if settings.p is not None and all(len(axis.values) == 1 for axis in space.grid.values()):
        raise ConfigError(
            f"stop_when.p={settings.p:g}: there is one cell, which is the best one from the start; "
            "set stop_when.gain or stop_when.patience"
        )
    if settings.scope == "cell" and settings.p is not None:
        raise ConfigError(
            f"stop_when.p={settings.p:g}: which cell is the best says nothing of when one cell has "
            "enough trials; must be null with stop_when.scope=cell"
        )
    if settings.scope == "cell" and budget.confirm:
        raise ConfigError(
            f"budget.confirm={budget.confirm}: a cell that has enough trials takes none that "
            "confirm; must be 0 with stop_when.scope=cell"
        )
    return settings


def stop_label(settings: StopSettings) -> str:
    """The rules in words: ``the study ends early once …``; empty if there are none."""
    rules = []
    if settings.gain is not None:
        share = isinstance(settings.gain, str)
        least = f"{settings.gain} of the values' spread" if share else f"{settings.gain:g}"
        rules.append(f"one more trial is expected to gain less than {least}")
    if settings.p is not None:
        rules.append(f"a cell is the best with a probability of {settings.p:g}")
    if settings.patience is not None:
        trials = count_label(settings.patience, "trial")
        rules.append(f"{trials} have ended since the one with the best value")
    what = "a cell gets no more trials" if settings.scope == "cell" else "the study ends early"
    return f"{what} once {' or '.join(rules)} (stop_when)" if rules else ""


def stops_nothing(spec: StudySpec) -> str | None:
    """Says that `stop_when` cannot leave out any trial; None if it can, or is off."""
    guaranteed = spec.n_cells * spec.budget.per_cell
    if not spec.stop_when.on or spec.budget.trials - spec.budget.confirm > guaranteed:
        return None
    return (
        f"stop_when: nothing can be left out, for every trial is one of the {guaranteed} that are "
        "guaranteed to cells or one that confirms; raise budget.trials or lower budget.per_cell"
    )
