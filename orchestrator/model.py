"""The nouns that all packages share: plain immutable values that need no database, no Optuna and no
Hydra.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from orchestrator.settings import (
    ALLOCATION,
    MOST_STARTUP_TRIALS,
    BudgetSettings,
    InfeasibleSettings,
    MedianSettings,
    NoPrunerSettings,
    PrunerSettings,
    RunnerSettings,
    SamplerSettings,
    StopSettings,
    TPESettings,
    stored_pruner,
    stored_sampler,
    stored_section,
)

Direction: TypeAlias = Literal["minimize", "maximize"]
Limits: TypeAlias = tuple[float | None, float | None]
"""The least and the greatest value that a metric can take; None where there is no limit."""
# control and format characters, which reorder or hide others, surrogates, line and paragraph
# separators
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# of other scalars, as JSON, YAML, Hydra or Python write them
_LIKE_ANOTHER = re.compile(
    r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)(e[-+]?\d+)?|true|false|null|none|[-+]?\.?(nan|inf)",
    re.IGNORECASE,
)
JSONValue: TypeAlias = Any  # None, bool, int, float, str, and lists and string-keyed dicts of them
# ${other.value}, but not ${resolver:…}
_NODE_INTERPOLATION = re.compile(r"\$\{(?!\s*[\w.]+:)")

MOST_BELIEVED = 20_000
"""With more trials than this, no model says which is the best: to read them all takes long."""
MOST_CELLS = 500
"""A grid with more cells than this is not estimated whole: it would take minutes."""
ASK_KEY = "orchestrator:ask"
"""The system attribute of a trial that holds all that is needed to suggest its parameters again."""


@dataclass(frozen=True)
class Axis:
    """One grid axis: a dotted path into ``params`` and the values it takes, in the order the user
    wrote them.

    The values of a config group's axis are the names of its options. `contents` has what each of
    `all_values` stands for; it is empty if the group is the program's own, which gets the name.
    `group` is the group as an override names it (``model``, ``+model``, ``net@params.net``); empty
    for any other axis.
    """

    path: str
    values: tuple[JSONValue, ...]
    contents: tuple[JSONValue, ...] = ()
    group: str = ""
    stored: tuple[JSONValue, ...] = ()
    """Every value that it has had in the study, in the order in which Optuna's tables count them;
    empty: `values`.
    """

    @property
    def all_values(self) -> tuple[JSONValue, ...]:
        """Every value that it has had in the study, those that were taken from it too."""
        return self.stored or self.values

    @property
    def of_program(self) -> bool:
        """Whether its values are options of a config group that the program itself has."""
        return bool(self.group) and not self.contents

    def content(self, value: JSONValue) -> JSONValue:
        """What ``params`` holds where the axis has this value, which is one of `all_values`."""
        return self.contents[self.all_values.index(value)] if self.contents else value


@dataclass(frozen=True)
class Searched:
    """One parameter left to the sampler.

    ``float`` and ``int`` use `low`, `high` (both inclusive), `step` (None: continuous, for int
    every whole number) and `log`; ``categorical`` uses `choices` (JSON values). `when` says in
    which cells the parameter exists: those that have one of the values given for every axis named;
    empty: in all.
    """

    path: str
    kind: Literal["float", "int", "categorical"]
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[JSONValue, ...] = ()
    when: Mapping[str, tuple[JSONValue, ...]] = field(default_factory=dict)
    stored: Searched | None = None
    """What covers all that it has been in the study, where that is more than what is searched now:
    the widest range, or every choice in the order in which Optuna's tables count them.
    """

    @property
    def whole(self) -> Searched:
        """The parameter with all that it has been in the study."""
        return self.stored or self

    def exists_in(self, cell: Mapping[str, JSONValue]) -> bool:
        """Whether a trial of that cell has this parameter; `cell` has a value for every axis that
        `when` names.
        """
        return all(
            any(same_value(cell[axis], value) for value in values)
            for axis, values in self.when.items()
        )


@dataclass(frozen=True)
class Budget(BudgetSettings):
    """What may be spent: `trials` in all, of which `per_cell` are guaranteed to every cell, and the
    last `confirm` repeat leading configurations.
    """

    trials: int = field()  # in a spec it is always set; `BudgetSettings` allows None


@dataclass(frozen=True)
class StudySpec:
    """Everything that a launch sets for a study, as stored with it: nothing of the host, no
    resolved secret.

    `objective` and `params` are unresolved plain containers (interpolations are kept as strings);
    the child resolves `params` after it merged the trial's values in.
    """

    name: str
    directions: tuple[Direction, ...]
    metrics: tuple[str, ...]
    objective: Mapping[str, JSONValue]
    params: Mapping[str, JSONValue]
    grid: tuple[Axis, ...]
    search: tuple[Searched, ...]
    budget: Budget
    allocation: str = ALLOCATION.default
    sampler: SamplerSettings = field(default_factory=TPESettings)
    pruner: PrunerSettings = field(default_factory=NoPrunerSettings)
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    infeasible: InfeasibleSettings = field(default_factory=InfeasibleSettings)
    stop_when: StopSettings = field(default_factory=StopSettings)
    seed: int = 0
    priority: int = 0
    bounds: tuple[Limits, ...] = ()
    """The limits of each metric; empty: none has any."""
    probes: Mapping[str, Mapping[str, JSONValue]] = field(default_factory=dict)
    """What each cell is measured by before its first trial: ``_target_`` and keyword arguments, by
    the probe's name.
    """
    warm_start: tuple[str, ...] = ()
    """The studies whose trials this one learns from; see `orchestrator.prior`."""
    enqueue_best: int = 0
    """How many of their best configurations it began with."""
    config: str = ""
    """The composed, unresolved Hydra config (YAML), for people and for `best out=…`."""
    revision: int = 1
    """How often the study's identity was changed, plus one; see `orchestrator.revision`."""

    def cells(self) -> Iterator[dict[str, JSONValue]]:
        """Every combination of the grid's values, the last axis fastest; one empty cell when there
        is no grid.
        """
        for combination in itertools.product(*(axis.values for axis in self.grid)):
            yield dict(zip((axis.path for axis in self.grid), combination, strict=True))

    def out_of_bounds(self, number: int, values: Sequence[float]) -> str | None:
        """In one sentence, which results of a trial lie outside `bounds`; None if none does."""
        outside = [
            f"{metric}={value!r} ({limits_label(limits)})"
            for metric, value, limits in zip(self.metrics, values, self.bounds, strict=False)
            if clipped(value, limits) != value
        ]
        if not outside:
            return None
        return (
            f"trial {number} has a result outside study.bounds: {', '.join(outside)}; it counts as "
            "it is. Correct the metric, or launch with other bounds"
        )

    @property
    def n_cells(self) -> int:
        count = 1
        for axis in self.grid:
            count *= len(axis.values)
        return count

    @property
    def share(self) -> int:
        """The trials that each cell gets where they are shared out evenly, rounded down."""
        return self.budget.trials // self.n_cells

    @property
    def beyond_shares(self) -> int:
        """The trials that are neither part of a cell's guarantee nor may repeat a configuration."""
        promised = self.n_cells * self.budget.per_cell + self.budget.confirm
        return max(0, self.budget.trials - promised)

    @property
    def pruner_in_effect(self) -> PrunerSettings:
        """The pruner with the numbers that `auto` stands for in this study, as it is stored.

        `HyperbandSettings.max_resource` stays `auto`: it is found while trials run.
        """
        if isinstance(self.pruner, MedianSettings):
            return self.pruner.for_share(self.share if self.n_cells > 1 else None)
        return self.pruner

    @property
    def learns(self) -> bool:
        """Whether where its trials run, or with which parameters, depends on other trials' results,
        as a model has them.
        """
        return self.sampler.name in ("gp", "tpe") or self.allocation == "adaptive"

    def declares(self, name: str) -> bool:
        """Whether the parameter is in grid or search; any other is one that the objective requests
        while it runs.
        """
        return any(axis.path == name for axis in self.grid) or any(
            searched.path == name for searched in self.search
        )

    def contents(self, values: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
        """What the options of config groups among a trial's values stand for, by the path of their
        axis.
        """
        return {
            a.path: a.content(values[a.path]) for a in self.grid if a.contents and a.path in values
        }

    @property
    def options(self) -> tuple[str, ...]:
        """The paths of the axes whose values are options of the program's own config groups."""
        return tuple(axis.path for axis in self.grid if axis.of_program)

    def as_launched_before(self, old: StudySpec) -> StudySpec:
        """This spec with its axes in the form that the study it continues has (`old`), and with
        the default that it was launched with.

        Options of config groups were once stored by their content, with ``${oc.env:…}`` and the
        like resolved at the launch; options of a program's own groups like any other words. A study
        with trials keeps its form. ``pruner.n_startup_trials`` was once 5 unless set otherwise, and
        stays 5 unless set otherwise where `auto` would not have given that.
        """
        stored = {axis.path: axis for axis in old.grid if not axis.group}
        kept = {
            a.path: stored[a.path]
            for a in self.grid
            if a.path in stored and _is_earlier_form(stored[a.path], a)
        }
        named = {axis.path: axis for axis in self.grid}
        choices = {searched.path: searched.choices for searched in old.search}
        search = []
        for searched in self.search:
            when = {
                path: tuple(kept[path].values[named[path].values.index(value)] for value in values)
                if path in kept
                else values
                for path, values in searched.when.items()
            }
            before = choices.get(searched.path, ())
            alike = len(before) == len(searched.choices) and all(
                map(_was_stored, searched.choices, before)
            )
            search.append(
                replace(searched, when=when, choices=before if alike else searched.choices)
            )
        return replace(
            self,
            grid=tuple(kept.get(axis.path, axis) for axis in self.grid),
            search=tuple(search),
            pruner=self._pruner_launched_before(old),
        )

    def _pruner_launched_before(self, old: StudySpec) -> PrunerSettings:
        new, before = self.pruner, old.pruner
        if (
            isinstance(new, MedianSettings)
            and isinstance(before, MedianSettings)
            and new.n_startup_trials == "auto"
            and before.n_startup_trials == MOST_STARTUP_TRIALS
            and replace(old, pruner=replace(before, n_startup_trials="auto")).pruner_in_effect
            != before
        ):
            return replace(new, n_startup_trials=MOST_STARTUP_TRIALS)
        return new

    def identity(self) -> dict[str, JSONValue]:
        """What a launch does not change by itself: grid, search, direction and metric, objective,
        defaults of params. See `orchestrator.revision` for what it may be extended by.
        """
        data = self.to_json()
        for axis in data["grid"]:
            if "contents" in axis:
                del axis["group"]  # the group's name on the command line
        return {
            key: data[key]
            for key in ("directions", "metrics", "objective", "params", "grid", "search")
        }

    def spec_hash(self) -> str:
        """SHA-256 (hex) of `identity`, independent of the order in which keys were written."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def is_same(self, other: StudySpec) -> bool:
        """Whether a launch of either has nothing to change in a study of the other.

        `config`, which is for people, may differ: a later version composes more settings.
        """
        return replace(self, config="").to_json() == replace(other, config="").to_json()

    def to_json(self) -> dict[str, JSONValue]:
        # with numbers in place of `auto`, so that older workers can read it
        stored = replace(self, pruner=self.pruner_in_effect)
        data: dict[str, JSONValue] = json.loads(json.dumps(asdict(stored)))
        for section in ("sampler", "pruner"):
            # `Unreadable` settings, of another version, are passed on as they were stored
            data[section] = data[section].get("stored", data[section])
        # Axes and parameters are sets of names: their order is not part of a study's identity.
        data["search"].sort(key=lambda s: s["path"])
        # without bounds it is written as before they existed, so that older workers can read it
        if not data["bounds"]:
            del data["bounds"]
        # without a rule it is written as before there were any
        if not self.stop_when.on:
            del data["stop_when"]
        # without probes it is written as before they existed
        if not data["probes"]:
            del data["probes"]
        # without sources it is written as before there were any
        for key in ("warm_start", "enqueue_best"):
            if not data[key]:
                del data[key]
        # without confirmation it is written as before there was any
        if not data["budget"]["confirm"]:
            del data["budget"]["confirm"]
        # a study that was never extended is written as before that was possible
        if data["revision"] == 1:
            del data["revision"]
        for searched in data["search"]:
            _leave_out_what_is_off(searched)
        for axis in data["grid"]:
            for key in ("contents", "group", "stored"):
                if not axis[key]:
                    del axis[key]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> StudySpec:
        fields = dict(data)
        fields["directions"] = tuple(data["directions"])
        fields["metrics"] = tuple(data["metrics"])
        fields["warm_start"] = tuple(data.get("warm_start", ()))
        fields["bounds"] = tuple((low, high) for low, high in data.get("bounds", ()))
        fields["grid"] = tuple(axis_from_json(a) for a in data["grid"])
        fields["search"] = tuple(searched_from_json(s) for s in data["search"])
        fields["budget"] = Budget(**data["budget"])
        readers: Mapping[str, Callable[[Any], Any]] = {
            "sampler": stored_sampler,
            "pruner": stored_pruner,
            "runner": lambda stored: stored_section(RunnerSettings, stored),
            "infeasible": lambda stored: stored_section(InfeasibleSettings, stored),
            "stop_when": lambda stored: stored_section(StopSettings, stored),
        }
        fields |= {
            section: read(data[section]) for section, read in readers.items() if section in data
        }
        return StudySpec(**fields)


def _leave_out_what_is_off(searched: dict[str, Any]) -> None:
    # without a condition it is written as before conditions existed
    if not searched["when"]:
        del searched["when"]
    if searched["stored"] is None:
        del searched["stored"]
    else:
        _leave_out_what_is_off(searched["stored"])


def axis_from_json(data: Mapping[str, Any]) -> Axis:
    """An axis as a stored spec has it."""
    return Axis(
        data["path"],
        tuple(data["values"]),
        tuple(data.get("contents", ())),
        data.get("group", ""),
        tuple(data.get("stored", ())),
    )


def _is_earlier_form(stored: Axis, axis: Axis) -> bool:
    """Whether `stored` is how an older version stored this axis."""
    values = axis.contents or axis.values
    return len(stored.values) == len(values) and all(map(_was_stored, values, stored.values))


def _was_stored(value: JSONValue, stored: JSONValue) -> bool:
    """Whether `stored` is what an older version made of `value`: it ran resolvers when it launched
    the study.
    """
    if isinstance(value, str) and value != stored:
        return "${" in value and not _NODE_INTERPOLATION.search(value)
    if isinstance(value, Mapping) and isinstance(stored, Mapping):
        return value.keys() == stored.keys() and all(
            _was_stored(value[key], stored[key]) for key in value
        )
    if isinstance(value, list | tuple) and isinstance(stored, list | tuple):
        return len(value) == len(stored) and all(map(_was_stored, value, stored))
    return json.dumps(value) == json.dumps(stored)  # 1 is not True here


def searched_from_json(data: Mapping[str, Any]) -> Searched:
    """A searched parameter as a stored spec has it."""
    when = {axis: tuple(values) for axis, values in data.get("when", {}).items()}
    stored = searched_from_json(data["stored"]) if "stored" in data else None
    return Searched(**{**data, "choices": tuple(data["choices"]), "when": when, "stored": stored})


def at(node: Any, path: str) -> Any:
    """Returns what plain containers hold at a dotted path (numbers index lists).

    Raises:
        KeyError: nothing is there.
    """
    for part in path.split("."):
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise KeyError(path)
    return node


def has(node: Any, path: str) -> bool:
    """Whether plain containers hold anything, null included, at a dotted path."""
    try:
        at(node, path)
    except KeyError:
        return False
    return True


def leaf_paths(node: Mapping[str, Any], above: str = "") -> list[str]:
    """Returns the dotted paths of everything in nested mappings that is not a mapping itself."""
    paths: list[str] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            paths += leaf_paths(value, f"{above}{key}.")
        else:
            paths.append(f"{above}{key}")
    return paths


def same_value(a: JSONValue, b: JSONValue) -> bool:
    """Whether two values are the same: numbers by size, true and 1 differ, lists and mappings as
    written.
    """
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (a, b)]
    return (
        bool(a == b)
        if all(numbers)
        else json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    )


def cell_label(cell: Mapping[str, JSONValue]) -> str:
    """A cell for people: ``data.batch_size=32 model.hidden_units=64``; ``(no grid)`` for the empty
    one.
    """
    values = (f"{visible(path)}={value_label(value)}" for path, value in cell.items())
    return " ".join(values) or "(no grid)"


def value_label(value: JSONValue) -> str:
    """One line of short text for a value: compact JSON, `visible`.

    Strings are bare, except those that could be taken for a number, a boolean or null.
    """
    bare = isinstance(value, str) and not _LIKE_ANOTHER.fullmatch(value)
    return visible(str(value) if bare else json.dumps(value, separators=(",", ":")))


def visible(text: str) -> str:
    """The text with what is not seen, ends a line or changes how others are shown as escapes, such
    as ``\\n`` or ``\\u202e``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c
        for c in text
    )


def clipped(value: float, limits: Limits) -> float:
    """The value nearest to `value` that a metric with these limits can take."""
    low, high = limits
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def limits_label(limits: Limits) -> str:
    """Limits for people: ``0 to 1``, ``at least 0``, ``at most 1``, ``no limit``."""
    low, high = limits
    if low is None or high is None:
        if low is None and high is None:
            return "no limit"
        return f"at most {high:g}" if low is None else f"at least {low:g}"
    return f"{low:g} to {high:g}"


def count_label(count: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def span_label(seconds: float) -> str:
    """A span of time for people, in the largest unit of which there are at least two: ``90 s``, ``3
    h``, ``12 d``.
    """
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


# ------------------------------------------------------------------- what search and store exchange


@dataclass(frozen=True)
class Param:
    """One parameter of a trial as Optuna stores it: the value in internal representation and the
    distribution as JSON.
    """

    name: str
    internal: float
    distribution: str


@dataclass(frozen=True)
class Suggestion:
    """What `ask` answers for a cell.

    `params` holds every parameter of the trial, grid and search, ready for Optuna's tables;
    `values` the true value of each (what the user's code receives); `system_attrs` what sampler and
    replay need, stored with the trial.
    """

    params: tuple[Param, ...]
    values: Mapping[str, JSONValue]
    system_attrs: Mapping[str, JSONValue] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialNews:
    """A trial as `store` reads it and `search` learns it; a later one with the same number replaces
    an earlier one.

    `state` is the name of Optuna's ``TrialState``; `cell` the ordinal of its cell, None for a trial
    that is not ours; `failure` the kind of a failed one (`Failed.kind`), None if it was not
    recorded.
    """

    number: int
    state: Literal["RUNNING", "WAITING", "COMPLETE", "PRUNED", "FAIL"]
    params: tuple[Param, ...] = ()
    values: tuple[float, ...] | None = None
    intermediate: Mapping[int, float] = field(default_factory=dict)
    system_attrs: Mapping[str, JSONValue] = field(default_factory=dict)
    cell: int | None = None
    failure: str | None = None


# ------------------------------------------------------------------------------ how an attempt ends


@dataclass(frozen=True)
class Completed:
    """The objective returned: one value per objective of the study, and the other entries of its
    mapping as `attrs`.
    """

    values: tuple[float, ...]
    attrs: Mapping[str, JSONValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruned:
    """The objective stopped early on purpose after reporting `step` (None: it reported nothing)."""

    step: int | None = None


@dataclass(frozen=True)
class Failed:
    """The trial failed.

    `kind` is one word (exception, exit, signal, oom, timeout, value, import); `message` says where
    the log is. `causes` are the words under which `runner.retry_on` may name it: the kind,
    ``exit:1``, ``signal:SIGKILL``, and of an exception its class and base classes, bare and with
    their module. For an ``oom``, `memory` says whose memory ran out, the device's or the host's,
    and `peak_bytes` the most that the trial held of it, None if unknown.
    """

    kind: str
    message: str
    causes: tuple[str, ...] = field(default=(), compare=False)
    memory: Literal["device", "host"] | None = field(default=None, compare=False)
    peak_bytes: int | None = field(default=None, compare=False)

    def passes(self, retry_on: Collection[str] | None) -> bool:
        """Whether `runner.retry_on` names it as transient; None names exceptions, exit codes and
        signals of any kind.
        """
        return any(
            word in self.causes
            for word in (("exception", "exit", "signal") if retry_on is None else retry_on)
        )


@dataclass(frozen=True)
class Interrupted:
    """Not a failure: the attempt was given back unfinished, and the same trial may continue
    elsewhere.

    `lost`: the attempt counts as lost, like one whose worker died; a trial may lose
    `runner.max_attempts` of them.
    """

    reason: str
    lost: bool = False


Outcome: TypeAlias = Completed | Pruned | Failed | Interrupted


@dataclass(frozen=True)
class Reported:
    """What the trials of a study have reported.

    `complete` is how many are complete; `silent`: none of the study, running ones included, has
    reported a value. `last` is the largest step, and `most` the largest number of values, that one
    of the newest complete and pruned trials has reported; `last` is None if they reported none.
    """

    complete: int
    silent: bool
    last: int | None = None
    most: int = 0


@dataclass(frozen=True)
class Report:
    """What an attempt reports besides its outcome, as it is written to the database.

    `intermediate` has the reported value of each step, `constraints` the value of each constraint
    by name, `artifacts` each artifact's record by its id. The rest comes with the end: `suggested`
    are parameters, with their true values, that the objective asked for and that the database may
    have lost; `facts` say what the attempt ran on and used.
    """

    intermediate: Mapping[int, float] = field(default_factory=dict)
    attrs: Mapping[str, JSONValue] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, JSONValue] = field(default_factory=dict)
    suggested: tuple[tuple[Param, JSONValue], ...] = ()
    facts: Mapping[str, JSONValue] = field(default_factory=dict)


def trial_seed(study_seed: int, ticket: int, failures: int) -> int:
    """A trial's seed in [0, 2**31): the same for all its attempts, different for every other trial
    of the study.
    """
    digest = hashlib.sha256(f"{study_seed} {ticket} {failures}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
