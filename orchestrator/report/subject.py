"""All that a report is made from; `reading` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator import search
from orchestrator.model import MOST_BELIEVED, MOST_CELLS, StudySpec, TrialNews
from orchestrator.prior import Prior
from orchestrator.report.advice import AGAIN
from orchestrator.report.compared import Compared
from orchestrator.report.statements import Statement, statements
from orchestrator.report.winner import complete, pareto
from orchestrator.store import CellRow, Progress, Span, TrialRow

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate, Leaders, Science, Search, Slices
    from orchestrator.store import ChainRow, ProbeRow, RevisionRow

_FEWEST_TRIALS = 3  # with fewer, the model says nothing


@dataclass(frozen=True)
class Subject:
    """A study as it stood at one moment.

    `trials` are those with a number, `news` the same as samplers read them, by number. `cells` are
    all cells, or the `MOST_CELLS` best ones; `estimates` and `leaders` what the model believes,
    None where it has nothing to say. `revisions` is empty unless the study was extended. `foreign`
    counts trials that others added to the study, which nothing here includes. `plain`: the study
    has no ledger, and so neither cells nor attempts. `chain` is the one that it is a stage of, and
    `inherited` the trial of each stage that the next one began with, by the id of its study.
    `priors` are what it took from the sources of its warm start.
    """

    spec: StudySpec
    progress: Progress
    search: Search
    trials: Sequence[TrialRow]
    news: Mapping[int, TrialNews]
    spans: Sequence[Span]
    probes: Sequence[ProbeRow] = ()
    revisions: Sequence[RevisionRow] = ()
    foreign: int = 0
    plain: bool = False
    waiting: int = 0
    chain: ChainRow | None = None
    inherited: Mapping[int, TrialRow] = field(default_factory=dict)
    priors: Sequence[Prior] = ()

    @cached_property
    def cells(self) -> tuple[CellRow, ...]:
        """Those of the grid as it is now."""
        return tuple(cell for cell in self.progress.cells if cell.ordinal < self.spec.n_cells)

    @cached_property
    def removed(self) -> tuple[CellRow, ...]:
        """Those that a revision took from the grid."""
        return tuple(cell for cell in self.progress.cells if cell.ordinal >= self.spec.n_cells)

    @property
    def maximize(self) -> bool:
        """Whether larger values of the first objective are better."""
        return self.spec.directions[0] == "maximize"

    @cached_property
    def estimates(self) -> list[CellEstimate | None]:
        """Of each of `cells`; of a large grid those that are compared, others have none."""
        if not self.believed:
            return [None] * len(self.cells)
        if self.spec.n_cells <= MOST_CELLS:
            return self.search.summary([cell.values for cell in self.cells])
        known = {}
        for one in self.science.cells if self.science else ():
            values = self.compared.cells[one.place]
            known[json.dumps(values, sort_keys=True)] = one.belief
        return [known.get(json.dumps(cell.values, sort_keys=True)) for cell in self.cells]

    @cached_property
    def compared(self) -> Compared:
        """The cells that are compared with each other."""
        return Compared.of(self.spec, self.progress)

    @cached_property
    def leaders(self) -> Leaders | None:
        return self.search.leaders() if self.believed else None

    @cached_property
    def statements(self) -> list[Statement]:
        """What can be said, and what cannot."""
        said = statements(self.spec, self.search, self.progress, self.trials)
        if self.plain:  # no command of ours can change it
            return [replace(one, advice="") for one in said]
        if self.chain is not None:  # a stage's budget and search are the chain's
            return [replace(one, advice="") if AGAIN in one.advice else one for one in said]
        return said

    @cached_property
    def sliced(self) -> Slices | None:
        """What the model believes along the searched parameters, the most important ones first."""
        if not self.believed:
            return None
        ranking = [one.path for one in self.science.importances] if self.science else []
        cells = [cell.values for cell in self.cells]
        return self.search.slices(cells, self.estimates, ranking)

    @cached_property
    def discounts(self) -> list[float | None]:
        """How much each of `priors` counts: from 0, not at all, to about 1; None where that is not
        known, or the sampler does not learn. What is believed here rests on the study's own trials,
        as in `best`.
        """
        if not self.priors or not self.spec.learns:
            return [None] * len(self.priors)
        model = search.Search(self.spec)
        model.warm_start(self.priors)
        model.feed(self.news.values())
        return list(model.discounts())

    @cached_property
    def science(self) -> Science | None:
        """What the trials say about axes and parameters."""
        if not self.believed:
            return None
        return self.compared.science(self.search)

    @property
    def believed(self) -> bool:
        """Whether there are neither too few nor too many trials for a model."""
        return _FEWEST_TRIALS <= len(self.news) <= MOST_BELIEVED

    @cached_property
    def complete(self) -> list[TrialRow]:
        """The complete feasible trials, by number."""
        return complete(self.trials)

    @cached_property
    def best_first(self) -> list[TrialRow]:
        """The complete feasible trials; with several objectives the Pareto front first, else the
        one that is believed to be the best, and then by the first value.
        """
        sign = -1.0 if self.maximize else 1.0
        ordered = sorted(self.complete, key=lambda t: (sign * _first(t), t.number))
        if len(self.spec.directions) > 1:
            leading = set(self.front)
        else:
            leading = set(self.leaders.best.trials[:1]) if self.leaders else set()
        return sorted(ordered, key=lambda t: t.number not in leading)

    @cached_property
    def front(self) -> list[int]:
        """The numbers of the trials on the Pareto front."""
        return [trial.number for trial in pareto(self.spec, self.complete)]

    @cached_property
    def ended(self) -> datetime | None:
        """When the last attempt ended."""
        return max((s.ended_at for s in self.spans if s.ended_at is not None), default=None)

    @cached_property
    def ends(self) -> dict[int, datetime]:
        """When the last attempt of each trial ended, by the trial's number."""
        ends: dict[int, datetime] = {}
        for span in self.spans:
            if span.ended_at is not None:
                ends[span.number] = max(span.ended_at, ends.get(span.number, span.ended_at))
        return ends

    @property
    def device_seconds(self) -> float:
        """What all attempts and probes that have ended took together."""
        attempts = sum(span.seconds or 0.0 for span in self.spans)
        return attempts + sum(probe.seconds or 0.0 for probe in self.probes)


def moment(at: datetime) -> str:
    """A time, in UTC, for people."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _first(trial: TrialRow) -> float:
    assert trial.values
    return trial.values[0]
