"""Odd values in the database: plain Optuna, its dashboard and we read each as it was said, and it
hides nothing else.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from orchestrator.model import Axis, Completed, Report, Searched, StudySpec
from orchestrator.runner.protocol.values import as_result
from orchestrator.search import Search
from orchestrator.store import Attempt, Store, WorkerLease
from tests.support.counting import count_messages
from tests.support.odd_values import ATTRS, KEYS, NUMBERS, UNBOUNDED, Refused, Said, identical
from tests.support.studies import begun, spec, start, take


class Database:
    """A study of ours in a real database, and everybody who reads it."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.url = url
        self.lease: WorkerLease = self.store.fleet.register(60)
        import optuna_dashboard  # takes a second: not while the tests are collected

        self._page = optuna_dashboard.wsgi(optuna.storages.RDBStorage(url))

    def launch(self, wanted: StudySpec) -> int:
        return self.store.studies.launch(wanted).study_id

    def end(
        self,
        claim: Attempt,
        outcome: Completed,
        reports: Mapping[int, float],
        attrs: Mapping[str, Any],
    ) -> None:
        self.store.ledger.report(claim, Report(reports, attrs))
        self.store.ledger.finish(claim, outcome, Report())

    def check_readers(self, name: str, study_id: int) -> None:
        """Checks that the dashboard's pages and our own reads work."""
        for path in ("/api/studies", f"/api/studies/{study_id}"):
            status, body = self._get(path)
            assert status == "200 OK", body
            json.loads(body)
        self.store.reads.trials(study_id)
        self.store.reads.progress(self.store.reads.find(name), maximize=True)

    def read(self, name: str, study_id: int) -> list[optuna.trial.FrozenTrial]:
        """The trials as plain Optuna reads them in a fresh process; checks that we
        read the same.
        """
        trials = optuna.load_study(study_name=name, storage=self.url).trials
        ours = sorted(self.store.news.since(study_id, 0)[0], key=lambda trial: trial.number)
        for plain, own in zip(trials, ours, strict=True):
            assert (plain.values, set(plain.params)) == (
                list(own.values or ()),
                {param.name for param in own.params},
            )
        return trials

    def _get(self, path: str) -> tuple[str, bytes]:
        environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
        setup_testing_defaults(environ)
        statuses: list[str] = []
        body = b"".join(
            self._page(environ, lambda status, headers, exc_info=None: statuses.append(status))
        )
        return statuses[0], body


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.store.rest()


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    opened = Said(tmp_path)
    yield opened
    opened.close()


@pytest.mark.filterwarnings("ignore:Converting a tensor")  # of torch, about requires_grad
def test_what_was_accepted_reads_back_for_everybody_and_hides_no_study(
    database: Database, said: Said
) -> None:
    kept_attrs = {
        name: make for name, (make, wanted) in ATTRS.items() if not isinstance(wanted, Refused)
    }
    kept_keys = [key for key, wanted in KEYS.values() if not isinstance(wanted, Refused)]
    numbers = [make for make, wanted in NUMBERS.values() if not isinstance(wanted, str)]
    study_id = database.launch(spec(cells=1, trials=len(kept_attrs)))
    results = []
    for make, number in zip(kept_attrs.values(), itertools.cycle(numbers)):
        claim = start(database.store, database.lease, study_id)
        assert claim is not None
        said.trial.set_user_attr("extra", make())
        attrs = said.take()[1] | (dict.fromkeys(kept_keys, 1) if claim.number == 0 else {})
        outcome, _ = as_result(number(), ["value"], ["minimize"])
        database.end(
            claim,
            outcome,
            dict(enumerate(map(float, UNBOUNDED.values()))) | {2**31 - 1: outcome.values[0]},
            attrs,
        )
        database.check_readers("study", study_id)
        results.append(outcome.values[0])
    trials = database.read("study", study_id)
    for trial, name, result in zip(trials, kept_attrs, results, strict=True):
        assert identical(trial.user_attrs["extra"], ATTRS[name][1]), name
        assert trial.values == [result]
        *unbounded, last = trial.intermediate_values.values()
        assert identical(unbounded, [math.nan, math.inf, -math.inf, math.nan])
        assert last == result
    assert trials[0].user_attrs.keys() == {"extra", *kept_keys}
    assert len(trials) >= 25


@pytest.mark.filterwarnings("ignore:Clip non-finite")  # of Optuna's GP
def test_infinity_in_the_bad_direction_is_the_worst_result_for_every_reader(
    database: Database,
) -> None:
    goals = {"directions": ("minimize", "maximize"), "metrics": ("loss", "accuracy")}
    for name, changes in (("one", {"directions": ("minimize",)}), ("two", goals)):
        wanted = spec(name, cells=2, trials=12, **changes)
        study_id = database.launch(wanted)
        worst = tuple(math.inf if d == "minimize" else -math.inf for d in wanted.directions)
        while (claim := start(database.store, database.lease, study_id)) is not None:
            assert claim.number is not None
            good = tuple(float(claim.number) for _ in worst)
            database.end(
                claim,
                Completed(worst if claim.cell == 0 or claim.number % 4 == 3 else good),
                {},
                {},
            )
            database.check_readers(name, study_id)
        trials = database.read(name, study_id)
        assert sum(trial.values == list(worst) for trial in trials) == 9
        progress = database.store.reads.progress(database.store.reads.find(name), maximize=False)
        assert [(c.completed, c.failed, c.best) for c in progress.cells] == [
            (6, 0, math.inf),
            (6, 0, 1.0),
        ]
        assert (progress.best, progress.best_trial) == (1.0, 1)
        plain = optuna.load_study(study_name=name, storage=database.url)
        assert plain.best_trials[0].number == 1
        samplers = [
            optuna.samplers.TPESampler(n_startup_trials=2, seed=0),
            optuna.samplers.NSGAIISampler(seed=0),
        ]
        for plain.sampler in (
            samplers
            if name == "two"
            else [*samplers, optuna.samplers.GPSampler(n_startup_trials=2, seed=0)]
        ):
            plain.ask(dict(trials[0].distributions))


AXES: dict[str, tuple[Any, ...]] = {
    "lists": ([1, [2]], [], [3]),
    "mappings": ({"a": 1}, {"a": 1.0}, {"a": True}),
    "nothing and its like": (None, "", "None", False),
    "numbers and their text": (1, "1", 1.5, "1.5"),
    "zeros": (-0.0, 1),
    "limits": (5e-324, 1e308),
    "2**53": (-(2**53), 2**53),
    "odd text": ("a\nb", "🎉👩‍💻", "\u202e", "'\";--%s", "\x1b[31m"),
    "long text": ("x" * 600, "x" * 601),
    "100 levels": (json.loads("[" * 100 + "]" * 100), 1),
}
SEARCHES = {
    "lists": Searched("x", "categorical", choices=([1], [2])),
    "nothing": Searched("x", "categorical", choices=(None, "None", False)),
    "subnormal": Searched("x", "float", 0.0, 1e-320),
    "least to greatest": Searched("x", "float", 5e-324, 1e308, log=True),
    "neighbours": Searched("x", "float", 0.1, 0.10000000000000002),
    "2**53": Searched("x", "int", -(2**53), 2**53),
    "512 characters": Searched("x" * 512, "float", 0.0, 1.0),
    "512 letters of two bytes": Searched("ü" * 512, "float", 0.0, 1.0),
}


def test_odd_axes_and_searches_run_and_hide_no_study(database: Database) -> None:
    odd = {
        name: spec(name.replace(" ", "-"), grid=(Axis("a", axis),), cells=len(axis))
        for name, axis in AXES.items()
    }
    odd |= {
        f"search {name}": spec(f"search-{name.replace(' ', '-')}", cells=1, search=(x,))
        for name, x in SEARCHES.items()
    }
    for wanted in odd.values():
        study_id = database.launch(wanted)
        asked = Search(database.store.reads.spec(study_id))
        given = []
        while (claim := take(database.store, database.lease, study_id)) is not None:
            suggested = asked.ask(claim.cell_values, ticket=claim.ticket, retry=claim.failures)
            attempt = begun(database.store, claim, database.lease, suggested)
            database.end(attempt, Completed((0.5,)), {}, {})
            given.append(attempt.values)
        assert identical([values["a"] for values in given], list(wanted.grid[0].values))
        assert identical([row.params for row in database.store.reads.trials(study_id)], given)
        database.check_readers(wanted.name, study_id)
        database.read(wanted.name, study_id)


def test_two_thousand_attributes_and_three_thousand_reports_are_written_in_bulk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id = database.launch(spec(cells=1, trials=1))
    claim = start(database.store, database.lease, study_id)
    assert claim is not None
    counted = count_messages(monkeypatch)
    database.end(
        claim, Completed((0.5,)), {i: i / 7 for i in range(3000)}, {f"k{i}": i for i in range(2000)}
    )
    assert counted.take()[0] < 20, "plain Optuna needs a transaction for each"
    database.check_readers("study", study_id)
    (read,) = database.read("study", study_id)
    assert read.user_attrs == {f"k{i}": i for i in range(2000)}
    assert read.intermediate_values == {i: i / 7 for i in range(3000)}
