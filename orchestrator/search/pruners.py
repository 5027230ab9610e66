"""The pruners a study may name, and what they compare a trial with: its own cell where that is
fairer, or the study.

The median and Wilcoxon pruners ask "is this worse than its peers at the same step?". Cells of a
grid differ on purpose (a small network is worse than a large one at every step), so they compare
inside the cell by default. ASHA and Hyperband share out one budget by rank and need many
competitors per rung, more than one cell has; they compare with the whole study.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.trial import FrozenTrial, TrialState

from orchestrator.errors import ConfigError
from orchestrator.search.trials.mirror import Mirror
from orchestrator.settings import PrunerSettings, Unreadable, check

_CLASSES: dict[str, type[BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "asha": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "wilcoxon": WilcoxonPruner,
}


class Judge:
    """Decides whether a running trial should stop, as a function of the reports alone, whatever the
    pruner.

    Optuna's successive halving leaves a mark on a trial for each rung it reached. Here the marks
    are derived from the reports instead, so nothing has to be stored, and a trial that moves to
    another worker is judged the same way.
    """

    def __init__(self, settings: PrunerSettings) -> None:
        """Makes the pruner that the study's settings name (`StudySpec.pruner_in_effect`).

        Raises:
            ConfigError: this version has no such pruner or option, or a value breaks its rule.
        """
        if isinstance(settings, Unreadable):
            raise ConfigError(settings.why)
        check("pruner", settings)
        options = vars(settings).copy()
        self._name = options.pop("name")
        self._within_cell = options.pop("within_cell", False)
        self._options = options
        self._pruner = _CLASSES[self._name](**options)
        # Trial number to the last step judged: a rung completed between two calls is judged at the
        # second.
        self._judged: dict[int, int] = {}

    def should_prune(
        self, mirror: Mirror, trial: FrozenTrial, cells: Mapping[int, int | None]
    ) -> bool:
        """The verdict for `trial` (with its reports so far) among the trials of `mirror`.

        A trial of a cell without a COMPLETE trial is never pruned, nor is one of a study with
        several objectives.
        """
        step = trial.last_step
        if self._name == "none" or step is None or len(mirror.get_study_directions(0)) > 1:
            return False
        cell = cells.get(trial.number)
        everyone = mirror.get_all_trials(0, deepcopy=False)
        mates = [t for t in everyone if cells.get(t.number) == cell]
        if cell is not None and not any(t.state == TrialState.COMPLETE for t in mates):
            return False
        peers = [t for t in (mates if self._within_cell else everyone) if t.number != trial.number]
        if isinstance(self._pruner, SuccessiveHalvingPruner | HyperbandPruner):
            # the same question gets the same answer
            before = min(self._judged.get(trial.number, step - 1), step - 1)
            peers = [self._marked(mirror, peer, math.inf) for peer in peers]
            trial = self._marked(mirror, trial, before)
            self._judged[trial.number] = step
        view = mirror.restricted([*peers, trial])
        with warnings.catch_warnings():
            # Wilcoxon's about steps that not all trials have, one per report
            warnings.simplefilter("ignore")
            return bool(self._pruner.prune(view.study(pruner=self._pruner), trial))

    def _marked(self, mirror: Mirror, trial: FrozenTrial, until: float) -> FrozenTrial:
        """A copy of the trial with successive halving's mark for each rung that a report up to step
        `until` completed.
        """
        first = self._first_rung_step(mirror, trial)
        if first is None or not trial.intermediate_values:
            return trial
        marks: dict[str, Any] = {}
        rung_step, rung = float(first), 0
        for step in sorted(trial.intermediate_values):
            while rung_step <= step <= until:
                marks[f"completed_rung_{rung}"] = trial.intermediate_values[step]
                rung_step, rung = rung_step * int(self._options["reduction_factor"]), rung + 1
        marked = copy.copy(trial)
        others = {
            k: v for k, v in trial.system_attrs.items() if not k.startswith("completed_rung_")
        }
        marked.system_attrs = {**others, **marks}
        return marked

    def _first_rung_step(self, mirror: Mirror, trial: FrozenTrial) -> int | None:
        """The step at which the trial's first rung is complete; None while Hyperband does not know
        its brackets.
        """
        least: int = int(self._options["min_resource"])
        factor: int = int(self._options["reduction_factor"])
        if isinstance(self._pruner, HyperbandPruner):
            study = mirror.study(pruner=self._pruner)
            if not self._pruner._pruners:
                self._pruner._try_initialization(study)
            if not self._pruner._pruners:
                return None
            return int(least * factor ** self._pruner._get_bracket_id(study, trial))
        return int(least * factor ** int(self._options["min_early_stopping_rate"]))
