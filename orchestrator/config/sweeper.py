"""A block ``hydra: sweeper:`` of the user's, which launch does not read: where its lines go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Sweep

from orchestrator.config import grammar
from orchestrator.errors import ConfigError
from orchestrator.model import value_label

_SETTINGS = {
    "direction": "study.direction",
    "study_name": "study.name",
    "n_trials": "budget.trials",
    "n_jobs": "worker.count",
    "storage": "storage.url",
}
"""The settings of Hydra's Optuna sweeper that have a counterpart here."""


def refusal(sweeper: Mapping[str, Any]) -> ConfigError | None:
    """Returns the error for a block that says anything, with every line in the form it has here.

    Args:
        sweeper: what stands below ``hydra.sweeper``, unresolved.
    """
    params = sweeper.get("params") or {}
    settings = {key: value for key, value in sweeper.items() if key in _SETTINGS}
    chooses = isinstance(sweeper.get("sampler"), Mapping | str)
    spaces = [key for key in ("search_space", "custom_search_space") if sweeper.get(key)]
    if not (params or settings or chooses or spaces):
        return None
    sections: dict[str, list[str]] = {"grid": [], "search": [], "params": []}
    for key, value in params.items() if isinstance(params, Mapping) else ():
        name = str(key).lstrip("+").removeprefix("params.")
        section, text = _translated(name, value)
        sections[section].append(f"{name}: {text}")
    lines = [f"{section}: {{{', '.join(those)}}}" for section, those in sections.items() if those]
    lines += [f"{_SETTINGS[key]}={value_label(value)}" for key, value in settings.items()]
    if chooses:
        lines.append("sampler=tpe (or gp, random, qmc, nsga2)")
    if spaces:
        lines.append(f"search: {{…}} for {' and '.join(spaces)}, a sweep for each parameter")
    return ConfigError(
        "hydra.sweeper: launch runs the sweep itself, as one study, and does not read this block; "
        f"remove it and write instead {'; '.join(lines)}"
    )


def _translated(name: str, value: Any) -> tuple[str, str]:
    """The section for one line of ``hydra.sweeper.params``, and its text in YAML there."""
    if isinstance(value, str):
        try:
            override = grammar.parse_override(f"{name}={value}")
            sweep = override._value
            if isinstance(sweep, ChoiceSweep) and sweep.simple_form:
                axis = grammar.declaration(name, sweep, section=None, source=f"{name}={value}")
                form = grammar.normal_form(axis)
                return "grid", f"[{', '.join(map(value_label, form))}]"
            if isinstance(sweep, Sweep):
                section = "grid" if "grid" in sweep.tags else "search"
                return section, f'"{value}"'
            return "params", value_label(override.value())  # Hydra made a word of 2
        except ConfigError:  # reported when it is written where it belongs
            return "search", f'"{value}"'
    return "params", value_label(value)
