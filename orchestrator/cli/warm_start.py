"""What a study takes from others, before its launch and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator import search
from orchestrator.model import StudySpec, count_label, value_label
from orchestrator.prior import Enqueued, Prior

if TYPE_CHECKING:
    from orchestrator.store import Launched, Reading, Store


@dataclass(frozen=True)
class Taken:
    """What a launch takes: `priors` of all sources, in the order of ``warm_start``, of which those
    named in `kept` were copied by an earlier launch; what runs first, and how many better
    configurations do not, by the reason in words.
    """

    priors: Sequence[Prior] = ()
    kept: frozenset[str] = frozenset()
    enqueued: Sequence[Enqueued] = ()
    not_enqueued: Mapping[str, int] = field(default_factory=dict)

    @property
    def new(self) -> list[Prior]:
        """What this launch copies."""
        return [prior for prior in self.priors if prior.source not in self.kept]

    def launcher(self, spec: StudySpec) -> Callable[[Store], Launched] | None:
        """Launches the study again with the same, if the database should have lost it; None where
        nothing was taken.
        """
        if not self.priors:
            return None
        return lambda store: store.studies.launch(
            spec, search.extension, priors=self.priors, enqueued=self.enqueued
        )

    def lines(self, spec: StudySpec, *, created: bool = True) -> list[str]:
        """For people: what is taken from where.

        Args:
            created: the launch created the study; nothing runs first in one that was there.
        """
        lines = [line(prior, copied=prior.source in self.kept) for prior in self.priors]
        if lines and not spec.learns:
            lines.append(_does_not_learn(spec))
        if created and (self.enqueued or self.not_enqueued):
            first = ", ".join(
                f"trial {one.number} of {value_label(one.source)}" for one in self.enqueued[:8]
            )
            more = f" and {len(self.enqueued) - 8} more" if len(self.enqueued) > 8 else ""
            lines.append(
                f"{count_label(len(self.enqueued), 'configuration')} of others run first"
                f"{f': {first}{more}' if first else ''}{_because(self.not_enqueued)}"
            )
        return lines

    def data(self, spec: StudySpec) -> dict[str, Any]:
        """For JSON."""
        cells = list(spec.cells()) if self.enqueued else []
        return {
            "sources": [prior_data(prior) for prior in self.priors],
            "enqueued": [
                {"study": e.source, "trial": e.number, "cell": cells[e.cell], "params": e.fixed}
                for e in self.enqueued
            ],
            "not_enqueued": dict(self.not_enqueued),
        }


NOTHING = Taken()
"""What a launch takes without ``warm_start``."""


def taken(store: Reading, spec: StudySpec) -> Taken:
    """What a launch of the study takes from others now; reads, and changes nothing.

    Raises:
        ConfigError: the database has no study that `warm_start` names, or it says nothing about
            this one.
    """
    if not spec.warm_start:
        return NOTHING
    (row,) = store.reads.studies([spec.name]) or (None,)
    there = [] if row is None else store.news.priors(row.study_id, spec.warm_start)
    kept = {prior.source: prior for prior in there}
    priors = [
        kept.get(name) or search.prior_of(spec, store.news.source(name)) for name in spec.warm_start
    ]
    if row is not None or not spec.enqueue_best:
        return Taken(priors, frozenset(kept))
    enqueued, left_out = search.best_of(spec, priors, spec.enqueue_best)
    return Taken(priors, frozenset(kept), enqueued, left_out)


def line(prior: Prior, *, copied: bool = False) -> str:
    """``warm start from digits: 96 trials taken, 4 left out (4 failed)``."""
    how = " by an earlier launch" if copied else ""
    remark = f"; {prior.remark}" if prior.remark else ""
    return (
        f"warm start from {value_label(prior.source)}: "
        f"{count_label(len(prior.observations), 'trial')} taken{how}"
        f"{_because(prior.left_out)}{remark}"
    )


def _does_not_learn(spec: StudySpec) -> str:
    return f"sampler={spec.sampler.name} does not learn from them; they only say what runs first"


def _because(left_out: Mapping[str, int]) -> str:
    if not left_out:
        return ""
    each = "; ".join(f"{n} {why}" for why, n in sorted(left_out.items(), key=lambda x: -x[1]))
    return f", {sum(left_out.values())} left out ({each})"


def prior_data(prior: Prior, discount: float | None = None) -> dict[str, Any]:
    """For JSON."""
    return {
        "study": prior.source,
        "taken": len(prior.observations),
        "left_out": dict(prior.left_out),
        "remark": prior.remark or None,
        "discount": discount,
    }


@dataclass(frozen=True)
class Weighed:
    """The sources of a study with how much each counts at the moment: from 0, not at all, to about
    1; None while too few trials have ended, or where nothing learns, as `unused` then says.
    """

    priors: Sequence[Prior] = ()
    discounts: Sequence[float | None] = ()
    unused: str = ""

    @staticmethod
    def of(store: Reading, study_id: int, spec: StudySpec) -> Weighed:
        """Reads the study; does not even import Optuna where there are no sources."""
        if not spec.warm_start:
            return Weighed()
        priors = store.news.priors(study_id, spec.warm_start)
        if not spec.learns:
            return Weighed(priors, [None] * len(priors), _does_not_learn(spec))
        model = search.Search(spec)
        model.warm_start(priors)
        model.feed(store.news.since(study_id, 0)[0])
        return Weighed(priors, model.discounts())

    def lines(self) -> list[str]:
        """For people."""
        if self.unused:
            return [*map(line, self.priors), self.unused]
        said = []
        for prior, discount in zip(self.priors, self.discounts, strict=True):
            if discount is None:
                counts = "its worth is not known yet"
            elif discount:
                counts = f"it counts with {discount:.2f}"
            else:
                counts = "it does not count: the trials foretell each other as well without it"
            said.append(f"{line(prior)}; {counts}")
        return said

    def data(self) -> list[dict[str, Any]]:
        """For JSON."""
        pairs = zip(self.priors, self.discounts, strict=True)
        return [prior_data(prior, discount) for prior, discount in pairs]
