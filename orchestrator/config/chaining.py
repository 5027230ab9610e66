"""From a composed config with stages to the `Chain` that is launched: every rule of every stage is
checked here, before any work starts.
"""

from __future__ import annotations

from omegaconf import open_dict

from orchestrator.config.composing import Composed, ComposedStage
from orchestrator.config.schema import checked
from orchestrator.config.study import MAX_NAME, check_inherited, name_of, study_spec
from orchestrator.config.translate import resolved
from orchestrator.errors import ConfigError
from orchestrator.settings import BudgetSettings, StudySettings
from orchestrator.stages import Chain, Stage


def chain(composed: Composed) -> Chain | None:
    """Returns the stages that a launch sets, checked; None for a study without any.

    Each stage is also checked with values in place as it could inherit them.

    Raises:
        ConfigError: the first rule that is broken, in one line that names the stage.
    """
    if not composed.stages:
        return None
    study = checked("study", StudySettings, resolved(composed.config, "study") or {})
    name = name_of(study.name)
    if len(set(study.metric if isinstance(study.metric, list) else [study.metric])) > 1:
        raise ConfigError(
            "stages: with several objectives there is no one best trial that a stage could begin "
            "with; launch studies of their own"
        )
    stages = tuple(_stage(name, stage) for stage in composed.stages)
    if stages[0].spec.warm_start:
        raise ConfigError(
            "warm_start: a stage begins with what the one before it found, and takes nothing from "
            "other studies; leave it out, or launch the stages as studies of their own"
        )
    budget = checked("budget", BudgetSettings, resolved(composed.config, "budget") or {})
    made = Chain(name, stages, budget.trials, budget.hours)
    if budget.trials is not None and made.trials > budget.trials:
        parts = " + ".join(f"{stage.spec.budget.trials} ({stage.name})" for stage in stages)
        raise ConfigError(
            f"budget.trials={budget.trials}: the stages have {parts} = {made.trials} trials; raise "
            f"budget.trials to {made.trials}, or lower the budget of a stage"
        )
    for stage, spec in made.examples():
        try:
            check_inherited(spec)
        except ConfigError as error:
            raise ConfigError(f"stages.{stage.name}: with what it inherits: {error}") from error
    return made


def _stage(chain: str, stage: ComposedStage) -> Stage:
    name = f"{chain}.{stage.name}"
    if len(name) > MAX_NAME:
        raise ConfigError(
            f"study.name={chain}: the study of stage {stage.name} is called {name}, which has "
            f"{len(name)} characters; must be at most {MAX_NAME}"
        )
    config = stage.composed.config
    with open_dict(config):
        config.study.name = name
        config.pop("stages", None)
    try:
        return Stage(stage.name, study_spec(stage.composed), stage.inherits, stage.own)
    except ConfigError as error:
        raise ConfigError(f"stages.{stage.name}: {error}") from error
