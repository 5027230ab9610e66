"""Reads what a report is made from, once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator import search
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import MOST_CELLS
from orchestrator.report import plain
from orchestrator.report.subject import Subject

if TYPE_CHECKING:
    from orchestrator.store import ChainRow, Reading, StudyRow, TrialRow


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
    return plain.read(store, found[-1])


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
