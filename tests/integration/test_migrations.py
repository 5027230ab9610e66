"""The schemas: made once however many ask, what the migrations make is what the code says, foreign
revisions are refused.
"""

from __future__ import annotations

import json
import os
import threading

import psycopg2
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from orchestrator.errors import ConfigError, SchemaOutdatedError, StoreUnavailableError
from orchestrator.search import create_optuna_tables, optuna_schema_head
from orchestrator.store import Prepared, Silent, Store
from orchestrator.store.connection.database import Database, hide_password, storage_url
from orchestrator.store.migrations import _config, revisions
from orchestrator.store.states import KNOWN_OPTUNA_REVISIONS
from tests.support import forking
from tests.support.invariants import query
from tests.support.studies import PLACE, end, spec, start, suggestion, take, work
from tests.support.waiting import wait_until


def migrate(url: str) -> None:
    store = Store(url)
    store.migrate(create_optuna_tables)
    store.rest()


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


BEFORE_PROBES = (
    "DROP TABLE orchestrator.prior; ALTER TABLE orchestrator.ticket DROP COLUMN copied_from;"
    "DROP TABLE orchestrator.stage; DROP TABLE orchestrator.chain;"
    "DROP TABLE orchestrator.revision; ALTER TABLE orchestrator.trial DROP COLUMN revision;"
    "ALTER TABLE orchestrator.cell DROP COLUMN removed_in;"
    "DROP TABLE orchestrator.probe; ALTER TABLE orchestrator.shortage DROP COLUMN probe_id;"
)
"""What takes back revisions 0014 to 0011."""


def test_ten_that_start_at_once_on_an_empty_database_all_find_it_ready(
    empty_database_url: str,
) -> None:
    processes = [forking.start(migrate, empty_database_url) for _ in range(10)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 10
    store = Store(empty_database_url)
    assert store.reads.studies() == []
    store.rest()


def test_the_migrations_make_what_the_schema_says(database_url: str) -> None:
    database = Database(storage_url(database_url))
    with database.transaction(idle_s=60) as connection:
        config: Config = _config()
        config.attributes["connection"] = connection
        command.check(config)
    database.rest()


def test_a_study_of_the_first_schema_goes_on_after_the_upgrade(empty_database_url: str) -> None:
    create_optuna_tables(empty_database_url)
    database = Database(storage_url(empty_database_url))
    with database.transaction(idle_s=60) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        study = spec(cells=1)
        connection.execute(sa.text("INSERT INTO studies (study_name) VALUES ('study')"))
        connection.execute(
            sa.text(
                "INSERT INTO orchestrator.study (study_id, name, spec, spec_hash) VALUES (1, "
                "'study', :spec, :hash)"
            ),
            {"spec": json.dumps(study.to_json()), "hash": study.spec_hash()},
        )
        connection.execute(
            sa.text(
                "INSERT INTO orchestrator.cell (study_id, ordinal, values, bound) VALUES (1, 0, "
                "CAST(:v AS json), 1)"
            ),
            {"v": json.dumps({"a": 0})},
        )
        connection.execute(
            sa.text(
                "INSERT INTO orchestrator.ticket (study_id, ordinal, cell_id, share) "
                "SELECT 1, 0, cell_id, 1 FROM orchestrator.cell"
            )
        )
    database.rest()
    migrate(empty_database_url)
    store = Store(empty_database_url)
    claim = start(store, store.fleet.register(60), 1)
    assert claim is not None
    end(store, claim)
    assert store.reads.find("study").reason == "budget spent"
    store.rest()


def test_a_worker_of_the_version_before_goes_on_while_the_schema_is_upgraded(
    database_url: str,
) -> None:
    """What the workers of revision 0006 say when they claim, as they say it."""
    store = Store(database_url)
    study = store.studies.launch(spec(cells=1)).study_id
    execute(
        database_url,
        "INSERT INTO orchestrator.worker (token, host, process_scope, pid, pid_started, ttl_s, "
        "lease_until) VALUES (nextval('orchestrator.token_seq'), 'host', 'elsewhere', 1, 1, 60, "
        "clock_timestamp() + interval '60 s');UPDATE orchestrator.ticket SET state = "
        "'LIVE';INSERT INTO orchestrator.trial (study_id, ticket_id, cell_id, worker_id, token, "
        "retried_from) SELECT t.study_id, t.ticket_id, t.cell_id, w.worker_id, "
        "nextval('orchestrator.token_seq'), t.retried_from FROM orchestrator.ticket t, "
        "orchestrator.worker w",
    )
    assert store.doctor.examine().findings == (), (
        "it says nothing of what it holds, and is not held to lie"
    )
    execute(
        database_url,
        "UPDATE orchestrator.worker SET lease_until = clock_timestamp() - interval '1 s'",
    )
    assert store.ledger.evict(Silent(1, dead=False, reason="silent"))
    claim = start(store, store.fleet.register(60), study)
    assert claim is not None
    end(store, claim)
    assert store.reads.find("study").reason == "budget spent"
    store.rest()


def test_what_the_version_before_has_prepared_is_begun_once_and_counts_as_no_lost_attempt(
    database_url: str,
) -> None:
    """Until revision 0009 a prepared trial was a RUNNING one without attempts."""
    store = Store(database_url)
    study = store.studies.launch(spec(cells=3, runner={"max_attempts": 1})).study_id
    leases = [store.fleet.register(60) for _ in range(3)]
    prepared = []
    for lease in leases:
        ticket = take(store, lease, study)
        assert ticket is not None
        made = store.ledger.create(ticket, suggestion(ticket), lease, PLACE, start=False)
        assert isinstance(made, Prepared)
        prepared.append(made)
    store.ledger.release(prepared[2], "told to end")
    execute(
        database_url,
        f"{BEFORE_PROBES}ALTER TABLE orchestrator.trial DROP CONSTRAINT trial_prepared;"
        "ALTER TABLE orchestrator.ticket DROP COLUMN confirms;"
        "UPDATE orchestrator.trial SET state = 'RUNNING';"
        "UPDATE orchestrator.version SET version_num = '0008'",
    )
    migrate(database_url)
    states = "SELECT state FROM orchestrator.trial ORDER BY number"
    assert query(database_url, states) == [("RUNNING",), ("RUNNING",), ("PREPARED",)], (
        "two are held by older workers"
    )
    execute(  # how one of those begins
        database_url,
        "WITH begun AS (UPDATE orchestrator.trial SET attempts = 1 WHERE state = 'RUNNING' AND "
        "attempts = 0 AND number = 0 RETURNING trial_id, token, worker_id)INSERT INTO "
        "orchestrator.attempt (trial_id, attempt, token, worker_id, host, runs_dir) SELECT "
        "trial_id, 1, token, worker_id, 'host', 'runs' FROM begun",
    )
    assert store.doctor.examine().findings == ()
    assert store.ledger.evict(Silent(leases[1].worker_id, dead=True, reason="died"))
    assert query(database_url, states) == [("RUNNING",), ("PREPARED",), ("PREPARED",)]
    store.ledger.deregister(leases[0], "done")
    work(database_url, study)
    assert [(t.state, t.attempts) for t in store.reads.trials(study)] == [
        ("COMPLETE", 2),
        ("COMPLETE", 1),
        ("COMPLETE", 1),
    ]
    assert query(database_url, "SELECT sum(lost) FROM orchestrator.trial") == [(0,)]
    assert store.doctor.examine().findings == ()
    store.rest()


def test_a_migration_that_meets_a_deadlock_with_an_older_worker_is_done_again(
    database_url: str,
) -> None:
    execute(database_url, f"{BEFORE_PROBES}UPDATE orchestrator.version SET version_num = '0010'")
    worker = psycopg2.connect(database_url.replace("+psycopg2", ""))
    held = worker.cursor()
    held.execute("SET deadlock_timeout = '30s'")  # so that the migration is what is undone
    held.execute("LOCK TABLE orchestrator.ticket IN ROW EXCLUSIVE MODE")
    failed: list[Exception] = []

    def upgrade() -> None:
        try:
            migrate(database_url)
        except StoreUnavailableError as error:
            failed.append(error)

    thread = threading.Thread(target=upgrade)
    thread.start()

    def waits() -> bool:
        which = "WHERE NOT granted AND relation = 'orchestrator.ticket'::regclass"
        return bool(query(database_url, f"SELECT 1 FROM pg_locks {which}"))

    wait_until(waits)
    held.execute("LOCK TABLE orchestrator.study IN ROW EXCLUSIVE MODE")
    worker.commit()
    worker.close()
    thread.join(60)
    assert failed == []
    assert query(database_url, "SELECT version_num FROM orchestrator.version") == [
        (revisions()[-1],)
    ]


def test_the_installed_optuna_writes_a_revision_we_know() -> None:
    assert optuna_schema_head() in KNOWN_OPTUNA_REVISIONS


def test_an_unknown_revision_of_optunas_tables_is_refused(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = 'v9.0.0.a'")
    with pytest.raises(SchemaOutdatedError, match=r"v9\.0\.0\.a"):
        migrate(database_url)


def test_a_schema_of_a_newer_version_is_refused(database_url: str) -> None:
    execute(database_url, "UPDATE orchestrator.version SET version_num = '9999'")
    with pytest.raises(SchemaOutdatedError, match="newer orchestrator"):
        migrate(database_url)


def test_a_database_without_our_schema_says_which_command_makes_it(empty_database_url: str) -> None:
    store = Store(empty_database_url)
    with pytest.raises(SchemaOutdatedError, match="orchestrator db upgrade"):
        store.reads.studies()
    store.rest()


def test_a_password_in_the_query_is_moved_to_where_it_is_masked() -> None:
    url = storage_url("postgresql://me@host/db?password=s3cret&sslmode=disable")
    assert (url.password, dict(url.query)) == ("s3cret", {"sslmode": "disable"})
    assert "s3cret" not in Database(url).masked_url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_a_bare_scheme_means_psycopg2(scheme: str) -> None:
    assert storage_url(f"{scheme}://me@host/db").drivername == "postgresql+psycopg2"


@pytest.mark.parametrize(
    "url",
    ["mysql://me:s3cret@host/db", "me:s3cret@host", "postgresql+psycopg://me:s3cret@host/db", ""],
)
def test_another_database_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_url(url)
    assert "storage.url" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_password_never_reaches_an_error_however_it_is_written() -> None:
    url = storage_url("postgresql://me:p%40ss%2Fword@127.0.0.1:9/db")
    with pytest.raises(StoreUnavailableError) as caught, Database(url).transaction():
        pass
    assert "p@ss/word" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)
    assert hide_password("x p@ss/word y p%40ss%2Fword", url) == "x *** y ***"


def test_a_missing_password_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"storage.password_file=/no/such: No such file"):
        storage_url("postgresql://me@host/db", "/no/such")


def test_a_lock_that_is_never_released_gives_up_with_an_error(database_url: str) -> None:
    holder = psycopg2.connect(database_url.replace("+psycopg2", ""))
    holder.cursor().execute("LOCK TABLE orchestrator.study")
    database = Database(storage_url(database_url))
    with (
        pytest.raises(StoreUnavailableError, match="lock timeout"),
        database.transaction(lock_s=1) as connection,
    ):
        connection.exec_driver_sql("SELECT * FROM orchestrator.study")
    holder.close()
    database.rest()


def test_the_revisions_are_those_of_alembic() -> None:
    script = ScriptDirectory.from_config(_config())
    assert revisions() == sorted(revision.revision for revision in script.walk_revisions())
    assert revisions()[-1] == script.get_current_head()


def test_a_role_for_workers_may_write_what_a_later_revision_adds(database_url: str) -> None:
    role = f"workers_{os.getpid()}"
    Store(database_url).rest()
    execute(
        database_url,
        f"{BEFORE_PROBES}ALTER TABLE orchestrator.ticket DROP COLUMN confirms;"
        "UPDATE orchestrator.version SET version_num = '0009';"
        f"CREATE ROLE {role}; GRANT UPDATE (state, fixed) ON orchestrator.ticket TO {role};"
        f"GRANT SELECT, INSERT ON orchestrator.shortage, orchestrator.study TO {role}",
    )
    try:
        migrate(database_url)
        may = f"has_column_privilege('{role}', 'orchestrator.ticket', '{{}}', 'UPDATE')"
        columns = ("confirms", "fixed", "extra")
        asked = ", ".join(may.format(column) for column in columns)
        assert query(database_url, f"SELECT {asked}") == [(True, True, False)]
        may = f"has_table_privilege('{role}', '{{}}', '{{}}')"
        rights = [("orchestrator.probe", right) for right in ("SELECT", "INSERT", "UPDATE")]
        rights += [("orchestrator.probe", "DELETE"), ("study_system_attributes", "INSERT")]
        rights += [("orchestrator.revision", right) for right in ("SELECT", "INSERT", "UPDATE")]
        asked = ", ".join(may.format(*right) for right in rights)
        assert query(database_url, f"SELECT {asked}") == [
            (True, True, True, False, True, True, True, False)
        ]
    finally:
        execute(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
