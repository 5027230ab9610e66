"""All that a report is made from, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator import search
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import MOST_BELIEVED, MOST_CELLS, Budget, Prior, StudySpec, TrialNews
from orchestrator.report.advice import AGAIN
from orchestrator.report.compared import Compared
from orchestrator.report.statements import Statement, statements
from orchestrator.report.winner import complete, pareto
from orchestrator.store import CellRow, Progress, Span, StudyRow, TrialRow

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate, Leaders, Science, Search, Slices
    from orchestrator.store import ChainRow, PlainStudy, ProbeRow, Reading, RevisionRow

_FEWEST_TRIALS = 3  # with fewer, the model says nothing
_PLAIN = "made by plain Optuna"


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

    @staticmethod
    def read(store: Reading, name: str | None) -> Subject:
        """The study of that name, or the newest one; of our own before those of plain Optuna. A
        chain of stages stands for the newest of them that has a complete trial.

        Raises:
            ConfigError: there is none.
        """
        rows, chains = store.reads.studies(), store.chains.names()
        if name in chains or any(name in (None, row.name) for row in rows):
            return _read(store, store.reads.find(_with_results(store, name)))
        others = store.plain_studies.all()
        found = [study for study in others if name in (None, study.name)]
        if not found:
            if name is not None:
                known = [*(row.name for row in rows), *(study.name for study in others), *chains]
                raise ConfigError(
                    f"study.name={name}: the database has no study of this "
                    f"name{did_you_mean(name, known)}"
                )
            store.reads.find(None)
        return _read_plain(store, found[-1])

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


def _with_results(store: Reading, name: str | None) -> str | None:
    """The study that the name stands for, where it is that of a chain."""
    chain = None if name is None else store.chains.find(name)
    done = [stage for stage in chain.begun if stage.complete] if chain is not None else []
    return done[-1].study if done else name


def _inherited(store: Reading, chain: ChainRow | None) -> dict[int, TrialRow]:
    """The trial of each stage that the stage after it inherited from, by the id of its study."""
    found: dict[int, TrialRow] = {}
    for stage, after in pairwise(() if chain is None else chain.begun):
        for trial in store.reads.trials(stage.study_id, number=after.inherited.trial):
            found[stage.study_id] = trial
    return found


def _read(store: Reading, row: StudyRow) -> Subject:
    spec = store.reads.spec(row.study_id)
    progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=MOST_CELLS)
    news = store.news.since(row.study_id, 0)[0]
    chain = store.chains.of(row.study_id)
    model = search.Search(spec)
    model.feed(news)
    return Subject(
        spec,
        progress,
        model,
        store.reads.trials(row.study_id),
        {one.number: one for one in news},
        store.course.spans(row.study_id),
        store.measured.of(row.study_id) if spec.probes else (),
        store.reads.revisions(row.study_id) if spec.revision > 1 else (),
        store.course.foreign(row.study_id),
        chain=chain,
        inherited=_inherited(store, chain),
        priors=store.news.priors(row.study_id, spec.warm_start) if spec.warm_start else (),
    )


def _read_plain(store: Reading, study: PlainStudy) -> Subject:
    """A study without a ledger, as if it were one of ours without a grid."""
    stored = store.plain_studies.trials(study.study_id)
    running, waiting = store.plain_studies.unfinished(study.study_id)
    news = [replace(trial.news, cell=0) for trial in stored]
    spec = search.undeclared(
        StudySpec(
            name=study.name,
            directions=study.directions,
            metrics=study.metrics,
            objective={"_target_": _PLAIN},
            params={},
            grid=(),
            search=(),
            budget=Budget(len(news) + running + waiting, 0),
        ),
        news,
    )
    model = search.Search(spec)
    model.feed(news)
    spans = [
        Span(
            one.news.number,
            0,
            one.news.state,
            1,
            None,
            "",
            None,
            None,
            one.started_at,
            one.ended_at,
            {"COMPLETE": "completed", "PRUNED": "pruned"}.get(one.news.state, "failed"),
        )
        for one in stored
        if one.started_at is not None
    ]
    trials = [_plain_trial(one) for one in news]
    begun = min((span.started_at for span in spans), default=datetime(1970, 1, 1, tzinfo=UTC))
    row = StudyRow(study.study_id, study.name, 0, _PLAIN, None, False, begun, begun)
    return Subject(
        spec,
        _plain_progress(row, spec, trials, running, waiting),
        model,
        trials,
        {one.number: one for one in news},
        spans,
        plain=True,
        waiting=waiting,
    )


def _plain_trial(news: TrialNews) -> TrialRow:
    constraints = [
        value for key, value in news.system_attrs.items() if key.startswith("constraints:")
    ]
    older = news.system_attrs.get("constraints") or []
    feasible = all(float(value) <= 0 for value in [*constraints, *older])
    failure = "no message: plain Optuna keeps none" if news.state == "FAIL" else None
    return TrialRow(
        news.number,
        news.state,
        0,
        search.true_values(news),
        news.values,
        1,
        failure,
        None,
        None,
        feasible,
    )


def _plain_progress(
    row: StudyRow, spec: StudySpec, trials: Sequence[TrialRow], running: int, waiting: int
) -> Progress:
    counts = {state: sum(t.state == state for t in trials) for state in ("COMPLETE", "PRUNED")}
    failed = len(trials) - sum(counts.values())
    done = [t for t in trials if t.state == "COMPLETE" and t.values and t.feasible]
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    best = min(done, key=lambda t: (sign * _first(t), t.number), default=None)
    value = None if best is None else _first(best)
    number = None if best is None else best.number
    spent = sum(counts.values())
    cell = CellRow(
        0,
        {},
        "OPEN",
        None,
        spent,
        counts["COMPLETE"],
        counts["PRUNED"],
        failed,
        running,
        value,
        number,
        spent,
        share=spent,
    )
    return Progress(
        study=row,
        total=spec.budget.trials,
        spent=spent,
        running=running,
        waiting=waiting,
        failed=failed,
        spent_since=0,
        seconds=0.0,
        seconds_left=None,
        n_cells=1,
        best=value,
        best_trial=number,
        cells=(cell,),
    )
