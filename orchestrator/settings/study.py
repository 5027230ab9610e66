"""The settings of one study: stored with it, the same for every worker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.settings.knob import (
    NOT_EMPTY,
    SEED,
    SHARE,
    Knob,
    Rule,
    above,
    at_least,
    check,
    knob,
    one_of,
    unknown,
    within,
    word_or_whole,
)

S = TypeVar("S")
Stored: TypeAlias = Mapping[str, Any]
"""A section as it is stored: JSON values by the names of its settings."""
MAX_TRIALS = 10_000_000  # a ticket each in the database
MOST_STARTUP_TRIALS = 5
"""What ``pruner.n_startup_trials=auto`` is at most, and where trials of all cells are compared.
Before there was `auto` this was the default.
"""


@dataclass(frozen=True)
class StudySettings:
    """Who the study is; `direction` and `metric` are a word or a list of words of the same"
    " length."""

    name: str | None = knob(
        None, "letters, digits, `.`, `_` and `-`; at most 100 characters", null="must be given"
    )
    direction: Any = knob(
        "minimize", "`minimize` or `maximize`; a list of them for several objectives"
    )
    metric: Any = knob(
        "value", "name of what the objective returns; a list if there are several objectives"
    )
    bounds: Any = knob(
        None,
        "the values that the metric can take, such as `[0, 1]` or `[0, null]`; with several "
        "objectives a list of such pairs",
        null="no limits",
        more="Estimates stay within them. A result outside them counts, with one warning for each"
        " study. A later launch may change them",
    )
    seed: int | None = knob(
        None,
        "seed of every suggestion and every trial",
        SEED,
        null="derived from the name",
        more="With one worker and `worker.prefetch=0` it reproduces the study (a trial prepared"
        " ahead depends on what had ended by then)",
    )
    priority: int = knob(
        0,
        "workers serve studies of higher priority first, then older ones",
        within(-(2**31), 2**31 - 1),
    )
    extend: bool = knob(
        False,
        "change the study of that name where this launch declares another grid or search",
        more="On a terminal a launch asks. It holds for this launch and is not stored. See"
        " [changing a study](changing.md)",
    )


@dataclass(frozen=True)
class BudgetSettings:
    """What may be spent, as it is set; `trials` of None: `per_cell` for every cell."""

    trials: int | None = knob(
        None,
        "spent trials (complete or pruned) in all",
        within(1, MAX_TRIALS),
        null="`per_cell` × cells",
        more="Must be given where there is no grid",
    )
    per_cell: int = knob(
        1,
        "trials guaranteed to every cell before any cell gets more",
        within(1, MAX_TRIALS),
        more="With one cell there is nothing to guarantee, and `budget.trials` applies",
    )
    hours: float | None = knob(
        None,
        "hours after a launch from which on no trial is started; running ones finish",
        above(0, 100_000),
        null="no limit",
    )
    max_failures_per_cell: int = knob(
        3, "failures in a row that a cell survives; one more closes it", within(0, 1_000_000)
    )
    max_failures_at_start: Any = knob(
        "auto",
        "this many failures that are all alike, before any result, pause the study",
        word_or_whole("auto", 1, 1_000_000, of="trials"),
        null="never",
        more="Alike means the same first line of the message, except for numbers. Where there are"
        " two cells, the failures must come from at least two. `auto`: 4 for each worker that"
        " serves it, 20 at most; null: never. `resume` or a launch continues the study",
    )
    confirm: int = knob(
        0,
        "so many of the last trials repeat leading configurations with other seeds, until one is "
        "clearly the best",
        within(0, MAX_TRIALS),
        more="They are part of `trials`, but never of a cell's guaranteed ones. What is not needed"
        " goes where the other trials go. See [how trials are"
        " chosen](search.md#noise-and-confirmation)",
    )


@dataclass(frozen=True)
class InfeasibleSettings:
    """What becomes of cells that run out of memory, by device type."""

    max_per_cell: int | None = knob(
        None,
        "out-of-memory failures in a row that a cell survives per device type; one more closes "
        "it there",
        within(0, 1_000_000),
        null="`budget.max_failures_per_cell`; `0` where an axis is declared",
        more="It is closed for devices with no more memory",
    )
    monotone: dict[str, Any] = knob(
        {},
        "numeric grid axes that need more memory the larger they are, such as `{data.batch_size: "
        "memory}`",
        more="Or `infeasible.monotone.data.batch_size=memory`. When a cell is closed, those above"
        " it are closed too, see [decision 17](decisions/0017-out-of-memory.md)",
    )


def _is_gain(value: Any) -> bool:
    if isinstance(value, str):
        return value.endswith("%") and 0.0 < _number(value[:-1]) <= 100.0
    return isinstance(value, int | float) and value is not True and 0.0 < value < math.inf


def _number(text: str) -> float:
    """The number that a text shows; NaN if it shows none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class StopSettings:
    """When a study has had enough trials before its budget is spent: once any rule holds."""

    gain: Any = knob(
        None,
        "the study ends once one more trial is expected to gain less than this, in the metric's "
        "unit; or `1%` of the spread of its values",
        Rule(
            "a number greater than 0, or a share of the spread from above 0% to 100%, such as 1%",
            _is_gain,
        ),
        null="never",
        more="The spread is the distance from the lower to the upper quartile. See [enough is"
        " enough](search.md#enough-is-enough)",
    )
    p: float | None = knob(
        None,
        "the study ends once a cell is the best with at least this probability",
        Rule("greater than 0 and less than 1", lambda value: 0 < value < 1),
        null="never",
    )
    patience: int | None = knob(
        None,
        "the study ends once this many trials have ended since the one with the best value",
        within(1, MAX_TRIALS),
        null="never",
        more="Trials from before the last launch that changed the study are not counted",
    )
    scope: str = knob(
        "study",
        "what the rules end: the `study`, or a `cell`, whose further trials go to the other cells",
        one_of("study", "cell"),
        more="With `cell`, gain and patience are those of the cell's own best value, and the study"
        " ends when every cell has enough",
    )

    @property
    def on(self) -> bool:
        """Whether any rule is set."""
        return (self.gain, self.p, self.patience) != (None, None, None)


@dataclass(frozen=True)
class RunnerSettings:
    """How one attempt of a trial runs, and how often the trial may run again."""

    max_runtime_min: float | None = knob(
        None, "minutes after which a trial fails", above(0), null="no limit"
    )
    grace_s: float = knob(5.0, "seconds from SIGTERM to SIGKILL", at_least(0))
    isolation: str = knob(
        "trial",
        "`trial`: a process per trial; `worker`: one process runs trial after trial",
        one_of("trial", "worker"),
        more="See [below](#one-process-for-many-trials)",
    )
    start: str = knob(
        "forkserver",
        "`forkserver`, or `spawn`: a fresh interpreter for every trial",
        one_of("forkserver", "spawn"),
    )
    max_attempts: int = knob(5, "a trial that lost this many workers fails", at_least(1))
    retries: int = knob(
        0,
        "how often a trial with a transient failure runs again, as the same trial",
        within(0, 1_000_000),
    )
    retry_on: list[str] | None = knob(
        None,
        "which failures are transient, such as `[OSError, exit:75, signal:SIGKILL, oom]`",
        NOT_EMPTY,
        null="any exception, exit code or signal",
        more="A list of exception classes (bare or with their module, base classes count), `exit`,"
        " `exit:75`, `signal`, `signal:SIGKILL`, `oom`, `timeout`",
    )
    resume: bool = knob(True, "an attempt begins with the checkpoints of the previous one")
    log_limit_mb: float = knob(
        10.0,
        "megabytes of a trial's log; a longer one keeps its head and tail only",
        above(0.001, 1_000_000),
    )


# --------------------------------------------------------------------------------------- samplers


@dataclass(frozen=True)
class SamplerSettings:
    """What every sampler has: its name."""

    name: str


@dataclass(frozen=True)
class TPESettings(SamplerSettings):
    name: str = knob("tpe", "Tree-structured Parzen estimator", one_of("tpe"))
    n_startup_trials: int = knob(
        10, "trials spread over the space before the model suggests any", at_least(0)
    )
    n_ei_candidates: int = knob(24, "candidates that the model ranks for a suggestion", at_least(1))


@dataclass(frozen=True)
class GPSettings(SamplerSettings):
    name: str = knob(
        "gp", "Gaussian process", one_of("gp"), more="With several objectives it is `tpe`"
    )
    n_startup_trials: int = knob(
        10, "trials spread over the space before the model suggests any", at_least(1)
    )


@dataclass(frozen=True)
class RandomSettings(SamplerSettings):
    name: str = knob("random", "uniformly at random", one_of("random"))


@dataclass(frozen=True)
class QMCSettings(SamplerSettings):
    name: str = knob("qmc", "a low-discrepancy sequence", one_of("qmc"))
    qmc_type: str = knob("sobol", "the sequence: `sobol` or `halton`", one_of("sobol", "halton"))
    scramble: bool = knob(True, "randomise the sequence by the study's seed")


@dataclass(frozen=True)
class NSGA2Settings(SamplerSettings):
    name: str = knob("nsga2", "the genetic algorithm NSGA-II", one_of("nsga2"))
    population_size: int = knob(50, "trials in a generation", at_least(2))
    mutation_prob: float | None = knob(
        None,
        "probability that a parameter mutates",
        SHARE,
        null="one over the number of parameters",
    )
    crossover_prob: float = knob(0.9, "probability that two parents are crossed", SHARE)


# ---------------------------------------------------------------------------------------- pruners


@dataclass(frozen=True)
class PrunerSettings:
    """What every pruner has: its name."""

    name: str


@dataclass(frozen=True)
class NoPrunerSettings(PrunerSettings):
    name: str = knob("none", "no trial is pruned", one_of("none"))


@dataclass(frozen=True)
class MedianSettings(PrunerSettings):
    name: str = knob(
        "median", "prunes a trial that is worse than the median of the others", one_of("median")
    )
    n_startup_trials: Any = knob(
        "auto",
        "trials to complete before any is pruned; `auto`: a third of those that a cell gets, from 1"
        " to 5, and 5 where trials of all cells are compared",
        word_or_whole("auto", 0, of="trials"),
        more="See [decision 34](decisions/0034-pruning-in-small-cells.md)",
    )
    n_warmup_steps: int = knob(0, "steps of a trial before it may be pruned", at_least(0))
    interval_steps: int = knob(1, "steps between two verdicts", at_least(1))
    within_cell: bool = knob(True, "compare with trials of the same cell only")

    def for_share(self, share: int | None) -> MedianSettings:
        """Returns these settings with the number that `auto` stands for.

        Args:
            share: the trials that each cell gets; None if there is only one cell.
        """
        if self.n_startup_trials != "auto":
            return self
        number = MOST_STARTUP_TRIALS
        if self.within_cell and share is not None:
            number = min(max(share // 3, 1), number)
        return dataclasses.replace(self, n_startup_trials=number)


@dataclass(frozen=True)
class ASHASettings(PrunerSettings):
    name: str = knob("asha", "asynchronous successive halving", one_of("asha"))
    min_resource: int = knob(1, "steps until the first rung", at_least(1))
    reduction_factor: int = knob(4, "one of this many trials reaches the next rung", at_least(2))
    min_early_stopping_rate: int = knob(0, "rungs left out at the beginning", at_least(0))
    within_cell: bool = knob(False, "compare with trials of the same cell only")


@dataclass(frozen=True)
class HyperbandSettings(PrunerSettings):
    name: str = knob(
        "hyperband", "successive halving with several first rungs at once", one_of("hyperband")
    )
    min_resource: int = knob(1, "steps until the first rung of the hardest bracket", at_least(1))
    max_resource: Any = knob(
        "auto",
        "steps of a whole trial; `auto`: the last step that a complete trial has reported",
        word_or_whole("auto", 1, of="steps"),
    )
    reduction_factor: int = knob(3, "one of this many trials reaches the next rung", at_least(2))
    within_cell: bool = knob(False, "compare with trials of the same cell only")


@dataclass(frozen=True)
class WilcoxonSettings(PrunerSettings):
    name: str = knob(
        "wilcoxon", "prunes by a signed-rank test against the best trial", one_of("wilcoxon")
    )
    p_threshold: float = knob(0.1, "p-value below which a trial is worse", SHARE)
    n_startup_steps: int = knob(2, "steps of a trial before it may be pruned", at_least(0))
    within_cell: bool = knob(True, "compare with trials of the same cell only")


@dataclass(frozen=True)
class Unreadable(SamplerSettings, PrunerSettings):
    """A stored sampler or pruner that this version cannot use, a later version's for one; `why`"
    " names the reason."""

    stored: Stored = field(default_factory=dict)
    why: str = ""


SAMPLERS: Mapping[str, type[SamplerSettings]] = {
    "tpe": TPESettings,
    "gp": GPSettings,
    "random": RandomSettings,
    "qmc": QMCSettings,
    "nsga2": NSGA2Settings,
}
PRUNERS: Mapping[str, type[PrunerSettings]] = {
    "none": NoPrunerSettings,
    "median": MedianSettings,
    "asha": ASHASettings,
    "hyperband": HyperbandSettings,
    "wilcoxon": WilcoxonSettings,
}
SECTIONS_OF_STUDY: Mapping[str, type[Any]] = {
    "study": StudySettings,
    "budget": BudgetSettings,
    "stop_when": StopSettings,
    "infeasible": InfeasibleSettings,
    "runner": RunnerSettings,
}
"""The sections of a study with the same settings whatever is chosen."""

ALLOCATION = Knob(
    "uniform",
    "which cell gets the trials beyond the shares: `uniform` or `adaptive`",
    one_of("uniform", "adaptive"),
    more="`uniform`: the one with the fewest. `adaptive`: the one where the model expects most"
    " from one more trial. Of more than 256 open cells it considers 256: the 192 with the"
    " best trials, and those with the fewest. The reason is stored with the trial"
    " (`orchestrator:why`)",
)
FREE: Mapping[str, Knob] = {
    "objective._target_": Knob(
        "???",
        "`package.module.function`, called as `function(cfg, trial)`",
        null="must be given",
        more="Or in Optuna's style as `function(trial)`, or as"
        " [`function(cfg)`](#functions-of-cfg-alone). Other keys of `objective` are passed by"
        " name. An instance with `__call__`, or a method of one, works as a function; a"
        " class, an async function and a generator are refused",
    ),
    "objective.command": Knob(
        None,
        'any program instead of a function: `"python train.py --lr {optim.lr}"`',
        null="none",
        more=(
            "See [below](#programs), with `objective.result`, `objective.overrides` and "
            "`objective.hydra`"
        ),
    ),
    "params": Knob({}, "`cfg` and its defaults", more="Interpolations see `params` as their root"),
    "grid": Knob({}, "hand-picked axes: a list of values each", more="Or a sweep as a string"),
    "search": Knob(
        {},
        'parameters left to the sampler: a sweep each, such as `"tag(log, interval(1e-4, 1e-1))"`',
        more="Or a list of choices; with a condition `{space: …, when: …}`, see below",
    ),
    "probes": Knob(
        {},
        "measurements that each cell begins with, such as a learning-rate range test; they narrow "
        "its search",
        more="By name: `{lr: {_target_: orchestrator.training.probes.lr_range, build: "
        "my_project.build, parameter: optim.lr}}`, see [probes](probes.md)",
    ),
    "warm_start": Knob(
        [],
        "other studies of this database, such as `[digits_small]`, from whose trials sampler and "
        "`allocation=adaptive` learn",
        more="What they found is copied at the launch. See [warm start](warm-start.md)",
    ),
    "enqueue_best": Knob(
        0,
        "so many of the best configurations of the studies in `warm_start` run first",
        within(0, MAX_TRIALS),
        more="They are part of the budget. See [warm start](warm-start.md#the-best-first)",
    ),
    "stages": Knob(
        [],
        "studies that follow each other, each with a grid and a search of its own; a stage begins "
        "with what the one before it found",
        more="See [stages](stages.md)",
    ),
}
MOST_SOURCES = 8
"""More studies than this are not read to warm start one."""
"""What a study says in sections whose contents are the user's own, by the name that the reference
uses.
"""


# ------------------------------------------------------------------------------------ from values


def sampler_settings(name: str, **options: Any) -> SamplerSettings:
    """Returns the settings of one sampler, defaults filled in.

    Raises:
        ConfigError: there is no such sampler or option, or a value breaks its rule.
    """
    return _filled("sampler", SAMPLERS, {"name": name, **options})


def pruner_settings(name: str, **options: Any) -> PrunerSettings:
    """Returns the settings of one pruner, as `sampler_settings`."""
    return _filled("pruner", PRUNERS, {"name": name, **options})


def stored_sampler(stored: Stored) -> SamplerSettings:
    """Returns the sampler of a stored study, defaults filled in; `Unreadable` where this version"
    " cannot use it."""
    try:
        return _filled("sampler", SAMPLERS, stored)
    except ConfigError as error:
        return Unreadable(str(stored.get("name")), stored, str(error))


def stored_pruner(stored: Stored) -> PrunerSettings:
    """Returns the pruner of a stored study, as `stored_sampler`."""
    try:
        return _filled("pruner", PRUNERS, stored)
    except ConfigError as error:
        return Unreadable(str(stored.get("name")), stored, str(error))


def stored_section(schema: type[S], stored: Stored) -> S:
    """Returns a section of a stored study, defaults filled in; settings that only a later version
    has are left out.
    """
    names = [f.name for f in dataclasses.fields(schema)]  # type: ignore[arg-type]
    return schema(**{name: stored[name] for name in names if name in stored})


def chosen(section: str, schemas: Mapping[str, type[S]], name: Any) -> type[S]:
    """Returns the settings of the sampler or pruner of that name.

    Raises:
        ConfigError: there is none.
    """
    if str(name) not in schemas:
        guess = did_you_mean(str(name), schemas)
        raise ConfigError(
            f"{section}={name}: there is no such {section}{guess}; there are {', '.join(schemas)}"
        )
    return schemas[str(name)]


def _filled(section: str, schemas: Mapping[str, type[S]], stored: Stored) -> S:
    schema = chosen(section, schemas, stored.get("name"))
    names = [f.name for f in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for key in stored:
        if key not in names:
            raise unknown(section, key, schema)
    settings = schema(**stored)
    check(section, settings)
    return settings
