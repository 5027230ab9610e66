"""A chain of studies, each of which begins with what the one before it found: what a stage may
inherit, and what becomes of its study. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import (
    Axis,
    JSONValue,
    Searched,
    StudySpec,
    axis_from_json,
    cell_label,
    searched_from_json,
)

BEST = "best"
"""The word of ``freeze`` that stands for every parameter of the best trial."""
NOTHING = "nothing"
"""The word of ``carry`` with which a stage begins anew."""


@dataclass(frozen=True)
class Inherits:
    """What a stage takes from the best trial of the stage before.

    The values of `freeze` become defaults of ``params``: those paths, or `BEST` for every path that
    the stage does not declare itself. `narrow` has, by path, the share of the old width that a
    parameter's new range has. What an earlier stage froze stays frozen, unless `anew`: then nothing
    of earlier stages is left.
    """

    freeze: tuple[str, ...] | str = ()
    narrow: Mapping[str, float] = field(default_factory=dict)
    anew: bool = False

    def to_json(self) -> dict[str, JSONValue]:
        freeze = self.freeze if isinstance(self.freeze, str) else list(self.freeze)
        return {"freeze": freeze, "narrow": dict(self.narrow), "anew": self.anew}


@dataclass(frozen=True)
class Stage:
    """One stage as it is declared: `spec` is its study before it inherits anything, under the name
    that the study will have. It lists each parameter of `inherits.narrow` with the range that the
    stage before declares.

    `own` are the paths of ``params`` that the stage, or the command line, sets itself.
    """

    name: str
    spec: StudySpec
    inherits: Inherits = field(default_factory=Inherits)
    own: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JSONValue]:
        """What is stored of a declaration."""
        return {
            "name": self.name,
            "inherits": self.inherits.to_json(),
            "own": list(self.own),
            "spec": self.spec.to_json(),
        }

    @property
    def declared(self) -> tuple[str, ...]:
        """The paths that have a value from elsewhere than an earlier stage."""
        paths = [axis.path for axis in self.spec.grid]
        return (*paths, *(searched.path for searched in self.spec.search), *self.own)


@dataclass(frozen=True)
class Chain:
    """The stages of one launch, in their order; `most` trials and `hours` bound all of them
    together.
    """

    name: str
    stages: tuple[Stage, ...]
    most: int | None = None
    hours: float | None = None

    @property
    def trials(self) -> int:
        """The trials of all stages together."""
        return sum(stage.spec.budget.trials for stage in self.stages)

    def examples(self) -> Iterator[tuple[Stage, StudySpec]]:
        """Each stage after the first with a spec that it could come to have: as if the best trial
        of the stage before had each axis's first value and each range's low end.
        """
        kept, before = Inherited(), self.stages[0].spec
        for stage in self.stages[1:]:
            kept = inherit(stage, before, kept, _example(before))
            before = kept.of(stage)
            yield stage, before


@dataclass(frozen=True)
class Inherited:
    """What a stage has from earlier ones, as it is stored with the chain once and for all.

    Attributes:
        params: the frozen values as ``params`` hold them, by path: of an option of a config group,
            what it stands for. Values that stay frozen from earlier stages are among them.
        options: of those that are an option of a config group, its name, as an axis of one value.
        axes: frozen options of a program's own config groups, which only an axis can hold.
        search: the narrowed parameters.
        gone: the parameters to narrow that the best trial does not have.
        study: name of the study that the best trial is of; empty for the first stage.
        trial: its number.
    """

    params: Mapping[str, JSONValue] = field(default_factory=dict)
    options: tuple[Axis, ...] = ()
    axes: tuple[Axis, ...] = ()
    search: tuple[Searched, ...] = ()
    gone: tuple[str, ...] = ()
    study: str = ""
    trial: int | None = None

    def to_json(self) -> dict[str, JSONValue]:
        return {
            "params": dict(self.params),
            **{
                key: [
                    {"path": axis.path, "values": list(axis.values), "group": axis.group}
                    for axis in axes
                ]
                for key, axes in (("options", self.options), ("axes", self.axes))
            },
            "search": [
                {
                    **{key: value for key, value in vars(searched).items() if key != "stored"},
                    "choices": list(searched.choices),
                    "when": {path: list(values) for path, values in searched.when.items()},
                }
                for searched in self.search
            ],
            "gone": list(self.gone),
            "study": self.study,
            "trial": self.trial,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Inherited:
        return Inherited(
            params=data["params"],
            options=tuple(map(axis_from_json, data["options"])),
            axes=tuple(map(axis_from_json, data["axes"])),
            search=tuple(map(searched_from_json, data["search"])),
            gone=tuple(data["gone"]),
            study=data["study"],
            trial=data["trial"],
        )

    @property
    def frozen(self) -> dict[str, JSONValue]:
        """Every frozen path with its value; of an option of a config group, its name."""
        names = {axis.path: axis.values[0] for axis in (*self.options, *self.axes)}
        return {**self.params, **names}

    def lines(self, before: StudySpec | None = None) -> list[str]:
        """What was inherited in words, one line each; nothing of a first stage.

        Args:
            before: the study of the stage before, for the ranges that were narrowed.
        """
        if self.trial is None:
            return []
        of = f"trial {self.trial} of {self.study}"
        lines = []
        if self.frozen:
            lines.append(f"frozen, from {of} and before: {cell_label(self.frozen)}")
        old = {} if before is None else {searched.path: searched for searched in before.search}
        for new in self.search:
            was = old.get(new.path)
            there = "" if was is None else f" (was {was.low:.4g} to {was.high:.4g})"
            lines.append(f"narrowed around {of}: {new.path} {new.low:.4g} to {new.high:.4g}{there}")
        lines += [f"not searched, as {of} has no {path}" for path in self.gone]
        return lines or [f"nothing of {of}"]

    def of(self, stage: Stage) -> StudySpec:
        """The stage's study: what it declares, with what it inherited in place."""
        params: Any = stage.spec.params
        if self.params:
            from omegaconf import OmegaConf  # slow to import, and few studies are stages

            from orchestrator.overlay import overlay

            laid = OmegaConf.create(dict(params))
            overlay(laid, self.params)
            params = OmegaConf.to_container(laid, resolve=False)
        narrowed = {searched.path: searched for searched in self.search}
        return replace(
            stage.spec,
            params=params,
            grid=(*stage.spec.grid, *self.axes),
            search=tuple(
                narrowed.get(searched.path, searched)
                for searched in stage.spec.search
                if searched.path not in self.gone
            ),
        )


def inherit(
    stage: Stage,
    before: StudySpec,
    kept: Inherited,
    best: Mapping[str, JSONValue],
    trial: int | None = None,
) -> Inherited:
    """What a stage inherits from the best trial of the stage before.

    Args:
        before: the study of that stage, with what it inherited itself (`kept`).
        best: the trial's true values by parameter; `trial` is its number.

    Raises:
        ConfigError: a parameter's new range cannot be made.
    """
    if stage.inherits.anew:
        return Inherited(study=before.name, trial=trial)
    params = dict(kept.params)
    axes = {axis.path: axis for axis in kept.axes}
    named = {axis.path: axis for axis in kept.options}
    wanted = best if stage.inherits.freeze == BEST else stage.inherits.freeze
    grid = {axis.path: axis for axis in before.grid}
    for path in wanted:
        if path not in best:
            continue  # it exists only where the best trial is not, or has one value everywhere
        axis = grid.get(path, Axis(path, (best[path],)))
        named.pop(path, None)
        if axis.of_program:
            axes[path] = replace(axis, values=(best[path],), stored=())
            continue
        params[path] = axis.content(best[path])
        if axis.contents:
            named[path] = replace(axis, values=(best[path],), contents=(), stored=())

    old = {searched.path: searched for searched in before.search}
    new = {searched.path: searched for searched in stage.spec.search}
    search, gone = [], []
    for path, share in stage.inherits.narrow.items():
        if path not in best or path not in old:
            gone.append(path)
            continue
        made = narrowed(old[path], best[path], share)
        search.append(replace(made, when=new[path].when if path in new else {}))
    taken = [*stage.declared, *stage.inherits.narrow]
    return Inherited(
        params={path: value for path, value in params.items() if not touches(path, taken)},
        options=tuple(axis for path, axis in named.items() if not touches(path, taken)),
        axes=tuple(axis for path, axis in axes.items() if not touches(path, taken)),
        search=tuple(search),
        gone=tuple(gone),
        study=before.name,
        trial=trial,
    )


def narrowed(old: Searched, best: JSONValue, share: float) -> Searched:
    """The parameter with a range of `share` of its old width, on its own scale, around `best`.

    Where that would reach beyond the old range, it is moved inwards, so that its width stays. The
    ends of whole numbers, and of a range in steps, are rounded outwards to values that the old
    range has.

    Raises:
        ConfigError: the parameter has no width: its values are choices.
    """
    if old.kind == "categorical":
        raise ConfigError(f"{old.path} is a choice of words, which has no width to narrow")
    assert old.low is not None
    assert old.high is not None
    assert isinstance(best, int | float)
    if old.low == old.high:
        return replace(old, stored=None)
    scale, back = (math.log, math.exp) if old.log else (float, float)
    low, high = scale(old.low), scale(old.high)
    width = share * (high - low)
    start = min(max(scale(best) - width / 2, low), high - width)
    # Rounding must neither leave the old range nor lose the best value.
    ends = min(back(start), best), max(back(start + width), best)
    made = max(ends[0], old.low), min(ends[1], old.high)
    if old.kind == "int" or old.step is not None:
        made = _in_steps(old, *made)
    return replace(old, low=made[0], high=made[1], stored=None)


def _in_steps(old: Searched, low: float, high: float) -> tuple[float, float]:
    """The closest values of the old range that are not above `low` and not below `high`."""
    assert old.low is not None
    assert old.high is not None
    first, last = Fraction(str(old.low)), Fraction(str(old.high))
    step = Fraction(str(old.step if old.step is not None else 1))
    # A value that is a step but for rounding errors is that step.
    down = math.floor((Fraction(low) - first) / step + Fraction(1, 10**9))
    up = math.ceil((Fraction(high) - first) / step - Fraction(1, 10**9))
    most = (last - first) // step
    ends = [first + min(max(count, 0), most) * step for count in (down, up)]
    if old.kind == "int":
        return int(ends[0]), int(ends[1])
    return float(ends[0]), float(ends[1])


def touches(path: str, others: Iterable[str]) -> bool:
    """Whether a path is one of the others, or lies above or below one."""
    return any(
        path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
        for other in others
    )


def _example(spec: StudySpec) -> dict[str, JSONValue]:
    """Values that a trial of the study could have: each axis's first, each range's low end."""
    cell = next(iter(spec.cells()))
    return {
        **cell,
        **{
            searched.path: searched.choices[0] if searched.choices else searched.low
            for searched in spec.search
            if searched.exists_in(cell)
        },
    }


def forgotten(stage: Stage, before: StudySpec, kept: Collection[str]) -> list[str]:
    """The parameters of the stage before that have their default again: the stage neither freezes,
    narrows nor declares them.
    """
    if stage.inherits.freeze == BEST and not stage.inherits.anew:
        return []
    paths = [axis.path for axis in before.grid]
    paths += [searched.path for searched in before.search]
    taken = [*stage.declared, *stage.inherits.narrow, *stage.inherits.freeze]
    if not stage.inherits.anew:
        taken += kept
    return [path for path in paths if not touches(path, taken)]
