"""What must hold in the database after any fault, read by plain SQL and plain Optuna: nothing lost,
nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import optuna
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.support.chaos_objective import value_at
from tests.support.commands import Commands


def query(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of one statement, in a connection of its own."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain, connect_timeout=30, application_name="chaos")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def check(
    commands: Commands, study: str, *, cells: int, per_cell: int = 1, foreign: Iterable[int] = ()
) -> None:
    """Asserts that every cell is complete exactly `per_cell` times, nothing runs any more, and all
    three books agree.

    Args:
        foreign: numbers of trials that others added.
    """
    url = str(commands.url)
    trials = plain_trials(url, study)
    assert [t.number for t in trials] == list(range(len(trials))), "numbers are 0..n-1"
    ours = [t for t in trials if t.number not in set(foreign)]
    assert Counter(t.state.name for t in ours) == {"COMPLETE": cells * per_cell}
    assert Counter(t.params["a"] for t in ours) == dict.fromkeys(range(cells), per_cell)
    for trial in ours:
        for step, value in trial.intermediate_values.items():
            assert value == pytest.approx(
                value_at(trial.params["a"], trial.params.get("x", 0.5), step)
            ), "one curve, of this trial"
    check_ledger(url, study)
    if _has_doctor():
        said = commands.run("doctor", f"study.name={study}")
        assert said.returncode == 0, said.stdout + said.stderr


def plain_trials(url: str, study: str) -> list[optuna.trial.FrozenTrial]:
    """All trials as plain Optuna reads them; no connection is left open."""
    storage = optuna.storages.RDBStorage(url)
    try:
        return optuna.load_study(study_name=study, storage=storage).trials
    finally:
        storage.engine.dispose()


def check_ledger(url: str, study: str) -> None:
    """Asserts that the ledger agrees with Optuna and with itself, whatever became of the trials."""
    (study_id,) = query(url, "SELECT study_id FROM studies WHERE study_name = %s", study)[0]
    differ = query(
        url,
        "SELECT o.number, o.state, t.number, t.state FROM orchestrator.trial o LEFT JOIN trials t "
        "ON t.trial_id = o.optuna_trial_id WHERE o.study_id = %s AND o.state <> 'CLAIMED' "
        "AND (t.trial_id IS NULL OR o.number <> t.number "
        "OR t.state::text <> CASE o.state WHEN 'PREPARED' THEN 'RUNNING' ELSE o.state END)",
        study_id,
    )
    assert differ == [], "ledger and Optuna agree on every trial"
    accepted = query(
        url,
        "SELECT o.number, o.state, count(*) FILTER (WHERE a.outcome IN ('completed', 'pruned')), "
        "count(*) FILTER (WHERE a.outcome IS NULL), max(a.attempt), o.attempts FROM "
        "orchestrator.trial o JOIN orchestrator.attempt a USING (trial_id) WHERE o.study_id = %s "
        "AND o.state IN ('COMPLETE', 'PRUNED') GROUP BY o.trial_id",
        study_id,
    )
    assert [row for row in accepted if row[2] != 1] == [], "accepted once"
    assert [row for row in accepted if row[3] != 0] == [], "no attempt of an ended trial is open"
    assert [row for row in accepted if row[4] != row[5]] == [], "attempts are counted right"
    tallies = query(
        url,
        "SELECT c.ordinal, c.completed, count(*) FILTER (WHERE o.state = 'COMPLETE') FROM "
        "orchestrator.cell c LEFT JOIN orchestrator.trial o USING (cell_id) WHERE c.study_id = "
        "%s GROUP BY c.cell_id",
        study_id,
    )
    assert [row for row in tallies if row[1] != row[2]] == [], "the cells' tallies are right"
    twice = query(
        url,
        "SELECT t.ordinal, t.state, count(o.trial_id) FILTER (WHERE o.holds_ticket) FROM "
        "orchestrator.ticket t LEFT JOIN orchestrator.trial o USING (ticket_id) WHERE t.study_id "
        "= %s GROUP BY t.ticket_id",
        study_id,
    )
    assert [row for row in twice if row[2] != (row[1] in ("LIVE", "SPENT"))] == [], (
        "a ticket has one trial or none"
    )
    silent = query(
        url,
        "SELECT worker_id FROM orchestrator.worker w WHERE state = 'GONE' AND (EXISTS (SELECT "
        "FROM orchestrator.slot s WHERE s.worker_id = w.worker_id) OR EXISTS (SELECT FROM "
        "orchestrator.trial t WHERE t.worker_id = w.worker_id))",
    )
    assert silent == [], "who is gone holds nothing"


@cache
def _has_doctor() -> bool:
    from orchestrator.cli import COMMANDS

    return "doctor" in COMMANDS
