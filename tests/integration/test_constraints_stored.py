"""Constraints of a trial, stored as Optuna stores them."""

from __future__ import annotations

import optuna

from orchestrator.model import Completed, Report
from orchestrator.store import Store
from tests.support.studies import spec, start


def test_a_constraint_is_stored_once_as_optuna_has_it_and_is_news(database_url: str) -> None:
    store = Store(database_url)
    lease = store.fleet.register(60)
    study = store.studies.launch(spec(cells=2)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    store.ledger.report(claim, Report({}, {}, {"memory": 1.5}))
    store.ledger.finish(claim, Completed((1.0,)), Report(constraints={"memory": -1.0, "time": 0.0}))
    (news, *_), _ = store.news.since(study, 0)
    said = {"constraints:memory": 1.5, "constraints:time": 0.0}
    assert said.items() <= news.system_attrs.items()
    (trial, *_) = optuna.load_study(study_name="study", storage=database_url).trials
    assert trial.constraints == {"memory": 1.5, "time": 0.0}
    store.rest()
