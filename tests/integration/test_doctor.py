"""The doctor: silent about a healthy database however busy it is, and one finding for each promise
that is broken.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import psycopg2
import pytest

from orchestrator.cli import main
from orchestrator.model import Budget, Completed, Failed, Pruned, Report
from orchestrator.store import SlotOffer, Store
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.doctor import INVARIANTS, NOTES, Doctor, Examination, look
from tests.support.postgres import TestServer
from tests.support.studies import PLACE, end, spec, start, work


@pytest.fixture
def busy(database_url: str) -> str:
    """A database of the test's own with studies in every state that a working system passes
    through; see `make_busy`.
    """
    store = Store(database_url)
    make_busy(store)
    store.rest()
    return database_url


@pytest.fixture(scope="module")
def patient(database_server: TestServer) -> Iterator[Database]:
    """A database like `busy` that many tests share: what they do to it is rolled back."""
    with database_server.prepared() as url:
        store = Store(url)
        make_busy(store)
        store.rest()
        database = Database(storage_url(url))
        yield database
        database.rest()


def make_busy(store: Store) -> None:
    """`busy` has trials of every state, `done` is finished with one beyond the shares, in `closed`
    one of two cells is.
    """
    one, two, three = (store.fleet.register(60) for _ in range(3))
    store.fleet.claim_slot(one, [SlotOffer("host", "GPU-1", 0, "H100")])

    done = store.studies.launch(spec("done", cells=2, trials=3)).study_id
    while (claim := start(store, one, done)) is not None:
        end(store, claim)

    closed = store.studies.launch(
        spec("closed", cells=2, budget=Budget(2, 1, max_failures_per_cell=0))
    ).study_id
    ends: list[Completed | Failed] = [
        Failed("exception", "broken"),
        Completed((1.0,)),
        Completed((2.0,)),
    ]
    outcomes = iter(ends)
    while (claim := start(store, one, closed)) is not None:
        end(store, claim, next(outcomes))

    busy = store.studies.launch(spec("busy", cells=3, per_cell=2, trials=9)).study_id
    for outcome in (
        Completed((0.0,)),
        Completed((1.0,)),
        Failed("exception", "broken"),
        Completed((3.0,)),
        Pruned(1),
    ):
        claim = start(store, one, busy)
        assert claim is not None
        store.ledger.report(claim, Report({0: 0.5}, {"note": 1}))
        end(store, claim, outcome)
    assert start(store, one, busy) is not None, "trial 5 runs"
    given_back = start(store, two, busy)
    assert given_back is not None
    store.interventions.enqueue(busy, {"a": 0}, {"x": 0.25})
    assert store.ledger.claim_one(three, busy, PLACE) is not None, (
        "one that has no Optuna trial yet"
    )
    store.ledger.release(given_back, "drained")
    store.ledger.deregister(two, "done")


def examine(url: str, study: str | None = None) -> Examination:
    database = Database(storage_url(url))
    try:
        return Doctor(database).examine(study)
    finally:
        database.rest()


class RolledBackError(Exception):
    """Ends a transaction without a trace."""


def examine_with(database: Database, statements: str) -> Examination:
    """What the doctor would find if these statements had been committed."""
    with suppress(RolledBackError), database.transaction() as c:
        c.exec_driver_sql(statements)
        found = look(c, None)
        raise RolledBackError
    return found


def execute(url: str, statements: str) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(statements)
    connection.close()


# ------------------------------------------------------------------------------------------ healthy


def test_a_healthy_busy_database_has_no_finding(busy: str) -> None:
    storage = optuna.storages.RDBStorage(busy)
    foreign = optuna.load_study(study_name="busy", storage=storage)
    foreign.enqueue_trial({"a": 1, "x": 0.5})
    foreign.tell(foreign.ask(), 1.0)
    foreign.ask()
    storage.engine.dispose()
    found = examine(busy)
    assert (found.findings, found.notes) == ((), ())
    assert (found.studies, found.trials) == (3, 13)


def test_an_empty_database_has_no_finding(database_url: str) -> None:
    assert examine(database_url) == Examination(0, 0, (), ())


def test_workers_that_write_meanwhile_are_no_finding(database_url: str) -> None:
    store = Store(database_url)
    looks = trials = 0
    while looks <= 3:  # how often it can look while they write is the machine's affair
        trials += 60
        study_id = store.studies.launch(spec(cells=20, per_cell=2, trials=trials)).study_id
        threads = [
            threading.Thread(
                target=work,
                args=(database_url, study_id),
                kwargs={"fail": 0.1, "release": 0.2, "seed": seed},
            )
            for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert examine(database_url).findings == ()
            looks += 1
    assert store.reads.find("study").state == "FINISHED"
    store.rest()


# ------------------------------------------------------------------------------------------- broken


@dataclass(frozen=True)
class Plant:
    """A broken invariant, made by hand in `busy`, and the words that its finding must hold."""

    sql: str
    said: str
    study: str | None = "busy"


def study(name: str = "busy") -> str:
    return f"study_id = (SELECT study_id FROM orchestrator.study WHERE name = '{name}')"


def trial(number: int, name: str = "busy") -> str:
    """Our trial, or Optuna's, of that number."""
    return f"number = {number} AND {study(name)}"


def of_optuna(number: int) -> str:
    return f"trial_id = (SELECT trial_id FROM trials WHERE {trial(number)})"


def attempt_of(number: int) -> str:
    return f"trial_id = (SELECT trial_id FROM orchestrator.trial WHERE {trial(number)})"


def ticket_of(number: int, name: str = "busy") -> str:
    return f"ticket_id = (SELECT ticket_id FROM orchestrator.trial WHERE {trial(number, name)})"


def cell(ordinal: int) -> str:
    return f"ordinal = {ordinal} AND {study()}"


WORKER_1 = "worker_id = (SELECT min(worker_id) FROM orchestrator.worker)"
GONE_WORKER = "(SELECT worker_id FROM orchestrator.worker WHERE state = 'GONE')"
ANOTHER_TICKET = (
    "INSERT INTO orchestrator.ticket (study_id, ordinal) SELECT study_id, 99 FROM "
    f"orchestrator.study WHERE {study('busy')}"
)
NEW_OPTUNA_TRIAL = (
    "INSERT INTO trials (number, study_id, state, datetime_start) SELECT {number}, study_id, "
    "'RUNNING', now() "
)

ID_OF_TRIAL = "SELECT trial_id FROM orchestrator.trial WHERE {}"


def short(values: str) -> str:
    """A shortage of the first cell on an H100 with 80 bytes: in a row, closed, why, by which trial,
    when.
    """
    return (
        "INSERT INTO orchestrator.shortage (cell_id, memory, device_name, bytes, in_a_row, "
        f"closed, reason, trial_id, closed_at) SELECT cell_id, 'gpu', 'H100', 80, {values} FROM "
        f"orchestrator.cell WHERE {cell(0)}"
    )


PLANTS = {
    "no Optuna trial": [
        Plant(
            f"UPDATE orchestrator.trial SET optuna_trial_id = 999 WHERE {trial(5)}",
            "trial 5 is RUNNING",
        )
    ],
    "state differs": [
        Plant(
            f"UPDATE trials SET state = 'FAIL' WHERE {trial(5)}",
            "trial 5 is RUNNING, but FAIL in Optuna",
        ),
        Plant(
            f"UPDATE trials SET state = 'FAIL' WHERE {trial(0)}",
            "trial 0 is COMPLETE, but FAIL in Optuna",
        ),
    ],
    "number differs": [
        Plant(
            f"UPDATE orchestrator.trial SET number = 70 WHERE {trial(5)}",
            "trial 70 has the number 5",
        )
    ],
    "values differ": [
        Plant(
            f"DELETE FROM trial_values WHERE {of_optuna(0)}",
            "trial 0 is COMPLETE and has 0 values in Optuna, not 1",
        ),
        Plant(
            f"INSERT INTO trial_values (trial_id, objective, value, value_type) "
            f"SELECT trial_id, 0, 1, 'FINITE' FROM trials WHERE {trial(4)}",
            "trial 4 is PRUNED and has 1 values",
        ),
    ],
    "parameters differ": [
        Plant(
            f"DELETE FROM trial_params WHERE param_name = 'x' AND {of_optuna(5)}",
            "trial 5 has the parameters a, x, but a",
        ),
    ],
    "times differ": [
        Plant(
            f"UPDATE trials SET datetime_complete = NULL WHERE {trial(0)}", "trial 0 is COMPLETE"
        ),
        Plant(
            f"UPDATE trials SET datetime_complete = now() WHERE {trial(5)}", "trial 5 is RUNNING"
        ),
        Plant(f"UPDATE trials SET datetime_start = NULL WHERE {trial(6)}", "started at no time"),
    ],
    "orphan": [
        Plant(
            f"WITH made AS ({NEW_OPTUNA_TRIAL.format(number=7)} FROM orchestrator.study WHERE "
            f"{study()} RETURNING trial_id) INSERT INTO trial_system_attributes (trial_id, key, "
            "value_json) SELECT trial_id, 'orchestrator:ask', '1' FROM made",
            "trial 7 of Optuna was made by a worker",
        )
    ],
    "numbers": [
        Plant(
            f"{NEW_OPTUNA_TRIAL.format(number=9)} FROM orchestrator.study WHERE {study()}",
            "8 trials",
        )
    ],
    "claim": [
        Plant(
            "UPDATE orchestrator.trial SET worker_id = NULL WHERE state = 'CLAIMED'",
            "no worker holds it",
        ),
        Plant(
            "UPDATE orchestrator.trial SET seq = 1000 WHERE state = 'CLAIMED'",
            "has a number, a place in the news",
        ),
    ],
    "ended": [
        Plant(
            f"UPDATE orchestrator.trial SET ended_at = NULL WHERE {trial(0)}",
            "trial 0 is COMPLETE, but has not ended",
        ),
        Plant(
            f"UPDATE orchestrator.trial SET ended_at = now() WHERE {trial(5)}",
            "trial 5 is RUNNING, but has ended",
        ),
        Plant(f"UPDATE orchestrator.trial SET failure = NULL WHERE {trial(2)}", "has no failure"),
        Plant(
            f"UPDATE orchestrator.trial SET worker_id = {GONE_WORKER} WHERE {trial(0)}",
            "is held by worker",
        ),
    ],
    "attempts": [
        Plant(
            f"UPDATE orchestrator.trial SET attempts = 2 WHERE {trial(0)}",
            "trial 0 counts 2 attempts, but those it has are: 1",
        ),
        Plant(
            f"UPDATE orchestrator.attempt SET attempt = 0 WHERE {attempt_of(0)}",
            "those it has are: 0",
        ),
        Plant(f"DELETE FROM orchestrator.attempt WHERE {attempt_of(0)}", "those it has are: none"),
    ],
    "counts": [
        Plant(
            f"UPDATE orchestrator.attempt SET outcome = 'lost' WHERE {attempt_of(6)}",
            "trial 6 counts 0 attempts lost",
        ),
        Plant(
            f"UPDATE orchestrator.attempt SET outcome = 'retried' WHERE {attempt_of(6)}",
            "but has 0 and 1",
        ),
    ],
    "attempt open": [
        Plant(
            "UPDATE orchestrator.attempt SET ended_at = NULL, outcome = NULL WHERE "
            f"{attempt_of(0)}",
            "attempt 1 of trial 0",
        ),
        Plant(
            "UPDATE orchestrator.attempt SET ended_at = NULL, outcome = NULL WHERE "
            f"{attempt_of(6)}",
            "but nobody runs it",
        ),
        Plant(
            "UPDATE orchestrator.attempt SET ended_at = now(), outcome = 'interrupted' WHERE "
            f"{attempt_of(5)}",
            "its worker runs on",
        ),
    ],
    "news": [
        Plant(
            f"UPDATE orchestrator.trial SET seq = NULL WHERE {trial(0)}",
            "trial 0 is at no place in the news",
        ),
        Plant(f"UPDATE orchestrator.study SET news = 11 WHERE {study()}", "which ends at 11"),
    ],
    "news twice": [
        Plant(
            "UPDATE orchestrator.trial SET seq = (SELECT seq FROM orchestrator.trial WHERE "
            f"{trial(0)}) WHERE {trial(1)}",
            "trial 0, trial 1 are all at",
        )
    ],
    "token twice": [
        Plant(
            "UPDATE orchestrator.trial SET token = (SELECT token FROM orchestrator.trial WHERE "
            f"{trial(0)}) WHERE {trial(1)}",
            "trial 0, trial 1 have the same token",
        )
    ],
    "ticket": [
        Plant(
            f"UPDATE orchestrator.ticket SET state = 'OPEN' WHERE {ticket_of(0)}",
            "is OPEN, but is held by trial 0",
        ),
        Plant(
            f"UPDATE orchestrator.ticket SET state = 'LIVE' WHERE {ticket_of(0)}",
            "is LIVE, but is held by trial 0",
        ),
        Plant(
            f"UPDATE orchestrator.ticket SET state = 'SPENT' WHERE {ticket_of(6)}",
            "is SPENT, but is held by trial 6",
        ),
        Plant(
            "UPDATE orchestrator.ticket SET state = 'LIVE', cell_id = (SELECT cell_id FROM "
            f"orchestrator.cell WHERE {cell(0)}) WHERE ordinal = 8 AND {study()}; UPDATE "
            f"orchestrator.cell SET bound = bound + 1 WHERE {cell(0)}",
            "is LIVE, but is held by nobody",
        ),
    ],
    "accepted twice": [
        Plant(
            "DROP INDEX orchestrator.trial_one_a_ticket; UPDATE orchestrator.ticket SET state = "
            f"'OPEN' WHERE {ticket_of(4)}; UPDATE orchestrator.trial SET ticket_id = (SELECT "
            f"ticket_id FROM orchestrator.trial WHERE {trial(0)}) WHERE {trial(4)}",
            "has several results: trial 0, trial 4",
        )
    ],
    "holds": [
        Plant(
            f"UPDATE orchestrator.ticket SET state = 'OPEN' WHERE {ticket_of(0)}; "
            f"UPDATE orchestrator.trial SET holds_ticket = false, failure = 'x' WHERE {trial(0)}",
            "trial 0 is COMPLETE, but does not hold its ticket",
        )
    ],
    "cell of ticket": [
        Plant(
            "UPDATE orchestrator.trial SET cell_id = (SELECT cell_id FROM orchestrator.cell "
            f"WHERE {cell(0)}) WHERE {trial(5)}",
            "trial 5 runs in another cell",
        )
    ],
    "ahead of shares": [
        Plant(
            "UPDATE orchestrator.trial t SET claimed_at = s.launched_at + interval '1 "
            "microsecond' FROM orchestrator.study s WHERE s.name = 'done' AND t.ticket_id = "
            f"(SELECT ticket_id FROM orchestrator.ticket k WHERE {study('done')} AND share IS "
            "NULL)",
            "trial 2 got ticket 2, no share of a cell, before the share 0 was spent",
            "done",
        )
    ],
    "over budget": [Plant(ANOTHER_TICKET, "10 tickets count for a budget of 9 trials")],
    "tally": [
        Plant(
            f"UPDATE orchestrator.cell SET completed = 2 WHERE {cell(0)}",
            "cell 0 counts 2 complete",
        ),
        Plant(
            f"UPDATE orchestrator.cell SET failed = 0 WHERE {cell(2)}",
            "0 failed, but has 1, 0 and 1",
        ),
        Plant(f"UPDATE orchestrator.cell SET pruned = 2 WHERE {cell(0)}", "2 pruned"),
    ],
    "bound": [
        Plant(
            f"UPDATE orchestrator.cell SET bound = 3 WHERE {cell(0)}",
            "cell 0 counts 3 tickets, but has 2",
        )
    ],
    "left in a closed cell": [
        Plant(
            f"UPDATE orchestrator.cell SET state = 'CLOSED', bound = bound + 1 WHERE {cell(0)}; "
            "UPDATE orchestrator.ticket SET cell_id = (SELECT cell_id FROM orchestrator.cell "
            f"WHERE {cell(0)}) WHERE ordinal = 8 AND {study()}",
            "ticket 8 is open, but its cell 0 is closed",
        )
    ],
    "short of its share": [
        Plant(
            "UPDATE orchestrator.study SET spec = jsonb_set(CAST(spec AS jsonb), "
            "'{budget,per_cell}', '2') WHERE name = 'done'",
            "cell 1 has 1 of its 2 trials, 1 of them complete",
            "done",
        )
    ],
    "out of memory": [
        Plant(
            short("2, false, NULL, NULL, NULL"),
            "cell 0 counts 2 trials in a row that ran out of memory on H100, but 0",
        ),
    ],
    "closed for a device": [
        Plant(
            short(f"0, true, 'why', ({ID_OF_TRIAL.format(trial(0))}), now()"),
            "cell 0 is closed for H100",
        ),
        Plant(short("0, true, 'why', 999, now()"), "by trial none, which is not there"),
        Plant(
            short(f"0, true, 'why', ({ID_OF_TRIAL.format(trial(2))}), NULL"),
            "since no time by trial 2, which is FAIL",
        ),
    ],
    "revision": [
        Plant(
            f"UPDATE orchestrator.trial SET revision = 7 WHERE {trial(0)}",
            "trial 0 was made under revision 7, which the study has not",
        )
    ],
    "grid differs": [
        Plant(
            "INSERT INTO orchestrator.cell (study_id, ordinal, values) SELECT l.study_id, "
            "max(l.ordinal) + 1, '{\"a\": 0}' FROM orchestrator.cell l JOIN orchestrator.study s "
            f"ON s.study_id = l.study_id WHERE s.{study()} GROUP BY l.study_id",
            "the grid of revision 1 has",
        )
    ],
    "off the grid": [
        Plant(
            "UPDATE orchestrator.cell SET values = '{\"a\": 99}' WHERE ordinal = 0 AND study_id = "
            f"(SELECT study_id FROM orchestrator.study WHERE {study()})",
            "cell 0 has a=99, which revision 1 of the study has not",
        )
    ],
    "two distributions": [
        Plant(
            "UPDATE trial_params SET distribution_json = '{}' WHERE param_name = 'x' AND "
            f"{of_optuna(0)}",
            "x has 2 distributions in the trials of the study",
        )
    ],
    "outside its revision": [
        Plant(
            f'UPDATE orchestrator.trial SET values = \'{{"a": 0, "x": 7.5}}\' WHERE {trial(0)}',
            "trial 0 has x=7.5, which revision 1 did not search",
        )
    ],
    "claimed where closed": [
        Plant(
            f"UPDATE orchestrator.attempt SET gpu_bytes = 80 WHERE {attempt_of(0)}; "
            + short(f"0, true, 'why', ({ID_OF_TRIAL.format(trial(2))}), now() - interval '1 h'"),
            "trial 0 was claimed for H100, but its cell 0 was closed for that before",
        )
    ],
    "finished early": [
        Plant(
            (
                "UPDATE orchestrator.study SET spec = jsonb_set(CAST(spec AS jsonb), "
                "'{budget,trials}', '4') WHERE name = 'done'; "
            )
            + ANOTHER_TICKET.replace("'busy'", "'done'"),
            "finished (budget spent), but 1 tickets are not spent: 99",
            "done",
        )
    ],
    "never ends": [
        Plant(
            "UPDATE orchestrator.study SET state = 'ACTIVE', reason = NULL WHERE name = 'done'",
            "active",
            "done",
        )
    ],
    "runs on": [
        Plant(
            "UPDATE orchestrator.study SET state = 'FINISHED', reason = 'budget.hours is over' "
            f"WHERE {study()}; UPDATE orchestrator.attempt SET started_at = now() - interval '2 "
            f"minutes' WHERE {attempt_of(5)}",
            "the study is finished, but trial 5 is RUNNING",
        )
    ],
    "expired": [
        Plant(
            "UPDATE orchestrator.worker SET ttl_s = 0.001, lease_until = now() - interval '9 s' "
            f"WHERE {WORKER_1}",
            "fell silent 00:00:09 ago",
            None,
        )
    ],
    "trial of the gone": [
        Plant(
            "DELETE FROM orchestrator.slot; UPDATE orchestrator.worker SET state = 'GONE', "
            f"reason = 'why' WHERE {WORKER_1}",
            "trial 5 is held by worker 1, which is gone: why",
        )
    ],
    "slot of the gone": [
        Plant(
            f"UPDATE orchestrator.slot SET worker_id = {GONE_WORKER}",
            "slot 0 of GPU-1 is held by worker 2, which is gone",
            None,
        )
    ],
    "two at once": [
        Plant(
            f"UPDATE orchestrator.trial SET worker_id = 1 WHERE {trial(6)}; "
            "UPDATE orchestrator.attempt SET ended_at = NULL, outcome = NULL WHERE "
            f"{attempt_of(6)}",
            "worker 1 runs trial 5, trial 6 at once",
        )
    ],
    "two ahead": [
        Plant(
            "UPDATE orchestrator.trial SET worker_id = 3, state = 'PREPARED', attempts = 0 WHERE "
            f"{trial(6)}; DELETE FROM orchestrator.attempt WHERE {attempt_of(6)}",
            "worker 3 holds trial 6, claim",
        )
    ],
    "not served": [
        Plant(
            "UPDATE orchestrator.worker SET refusals = (SELECT jsonb_build_object(CAST(study_id "
            "AS text), jsonb_build_object('revision', revision, 'why', 'no module train')) FROM "
            f"orchestrator.study WHERE {study()})",
            "none of the workers that might serve it can: no module train",
        )
    ],
    "not run": [
        Plant(
            "UPDATE orchestrator.worker SET holds = '{7}', lease_until = now() + "
            f"make_interval(secs => ttl_s - 10) WHERE {WORKER_1}; UPDATE orchestrator.attempt SET "
            f"started_at = now() - interval '1 minute' WHERE {attempt_of(5)}",
            "trial 5 is held by worker 1 on",
        )
    ],
}


def stages() -> str:
    """Makes `busy` the stage after `done`, which began a second earlier."""
    return (
        "INSERT INTO orchestrator.chain (name, stages) VALUES ('chain', '[]');"
        "INSERT INTO orchestrator.stage (chain_id, ordinal, name, study_id, inherited, began_at) "
        "SELECT k.chain_id, CASE s.name WHEN 'done' THEN 0 ELSE 1 END, s.name, s.study_id, "
        "'{\"params\": {}, \"search\": []}', now() - CASE s.name WHEN 'done' THEN "
        "interval '1 s' ELSE '0 s' END "
        "FROM orchestrator.study s, orchestrator.chain k WHERE s.name IN ('done', 'busy');"
    )


PLANTS |= {
    "stage out of order": [
        Plant(
            f"{stages()}UPDATE orchestrator.stage SET began_at = now() WHERE ordinal = 0",
            "stage busy of chain began before stage done, which comes before it",
        )
    ],
    "inheritance lost": [
        Plant(
            stages() + 'UPDATE orchestrator.stage SET inherited = \'{"params": {"a": 7, "b.c": 1}, '
            '"search": []}\' WHERE ordinal = 1',
            "stage busy of chain inherited b.c=1, but its study has nothing",
        )
    ],
    "range lost": [
        Plant(
            stages()
            + 'UPDATE orchestrator.stage SET inherited = \'{"params": {"x": 0.5}, "search": '
            '[{"path": "x", "low": 0.25, "high": 0.5}]}\' WHERE ordinal = 1',
            "stage busy of chain searches x from 0.25 to 0.5, but its study does not",
        )
    ],
}


def test_every_invariant_has_a_plant() -> None:
    assert set(PLANTS) == set(INVARIANTS)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        pytest.param(kind, plant, id=f"{kind}: {plant.said}")
        for kind, some in PLANTS.items()
        for plant in some
    ],
)
def test_a_broken_invariant_is_its_own_finding_and_no_other(
    patient: Database, kind: str, plant: Plant
) -> None:
    found = examine_with(patient, plant.sql).findings
    assert {(f.kind, f.study) for f in found} == {(kind, plant.study)}, found
    assert any(plant.said in f.message for f in found), found


def test_another_study_is_not_looked_at_when_one_is_named(busy: str) -> None:
    execute(busy, PLANTS["state differs"][0].sql)
    assert examine(busy, "done") == Examination(1, 3, (), ())
    assert [f.kind for f in examine(busy, "busy").findings] == ["state differs"]


def test_a_worker_silent_for_less_than_its_rescue_takes_is_no_finding(patient: Database) -> None:
    silent = "UPDATE orchestrator.worker SET ttl_s = 60, lease_until = now() - interval '80 s'"
    assert examine_with(patient, silent).findings == ()


@pytest.mark.parametrize(
    ("kind", "sql", "said"),
    [
        (
            "deleted",
            "CREATE TEMP TABLE gone AS SELECT study_id FROM studies WHERE study_name = 'done'; "
            + "".join(
                (
                    f"DELETE FROM {table} WHERE trial_id IN (SELECT trial_id FROM trials WHERE "
                    "study_id IN (TABLE gone)); "
                )
                for table in (
                    "trial_params",
                    "trial_values",
                    "trial_system_attributes",
                    "trial_user_attributes",
                )
            )
            + "".join(
                f"DELETE FROM {table} WHERE study_id IN (TABLE gone); "
                for table in (
                    "trials",
                    "study_directions",
                    "study_user_attributes",
                    "study_system_attributes",
                    "studies",
                )
            ),
            "deleted elsewhere",
        ),
        (
            "renamed",
            "UPDATE studies SET study_name = 'other' WHERE study_name = 'done'",
            "is called other in Optuna",
        ),
    ],
)
def test_what_a_dashboard_did_is_a_note_and_no_finding(
    patient: Database, kind: str, sql: str, said: str
) -> None:
    found = examine_with(patient, sql)
    assert found.findings == ()
    assert [(n.study, n.kind) for n in found.notes] == [("done", kind)]
    assert said in found.notes[0].message
    assert kind in NOTES


# ------------------------------------------------------------------------------------------ command


@pytest.fixture
def command_line(busy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", busy)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    return busy


def test_the_command_says_that_nothing_is_wrong(
    command_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "3 studies, 13 trials: nothing wrong\n"
    assert main(["doctor", "study.name=done"]) == 0
    assert capsys.readouterr().out == "1 study, 3 trials: nothing wrong\n"


def test_the_command_prints_a_line_a_finding_and_ends_with_1(
    command_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(command_line, PLANTS["state differs"][0].sql + ";" + PLANTS["slot of the gone"][0].sql)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "study busy: state differs: trial 5 is RUNNING, but FAIL in Optuna",
        "fleet: slot of the gone: slot 0 of GPU-1 is held by worker 2, which is gone: done",
        "3 studies, 13 trials: 2 things wrong",
    ]
    assert main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [f["kind"] for f in data["findings"]] == ["state differs", "slot of the gone"]


def test_a_study_that_is_not_there_is_a_mistake(
    command_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "study.name=bussy"]) == 2
    assert "did you mean 'busy'" in capsys.readouterr().err
