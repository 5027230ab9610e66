"""What a short command loads, and that reading without SQLAlchemy is reading the same."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from orchestrator.errors import OrchestratorError, SchemaOutdatedError, StoreUnavailableError
from orchestrator.store import Store, WorkerLease, open_to_read
from orchestrator.store.connection.database import storage_url
from orchestrator.store.connection.plain import Plain, connection_words
from orchestrator.store.connection.statement import Statement
from tests.support.loaded import loaded
from tests.support.studies import end, spec, start

SLOW = {"alembic", "hydra", "numpy", "omegaconf", "optuna", "scipy", "sqlalchemy", "torch"}


@pytest.fixture
def study(store: Store) -> int:
    lease = store.fleet.register(60)
    study_id = store.studies.launch(spec(cells=2)).study_id
    attempt = start(store, lease, study_id)
    assert attempt is not None
    end(store, attempt)
    return study_id


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json", "study.name=s"],
        ["trials", "n=5"],
        ["trials", "--csv"],
    ],
    ids=" ".join,
)
def test_what_shows_studies_loads_nothing_slow(
    words: list[str], store: Store, study: int, tmp_path: Path
) -> None:
    assert store.reads.studies()[0].study_id == study
    words = [word.replace("=s", f"={store.reads.find(None).name}") for word in words]
    assert not loaded(*words, cwd=tmp_path, url=store.url) & SLOW


def test_the_best_trial_is_found_without_hydra_and_sqlalchemy(
    store: Store, study: int, tmp_path: Path
) -> None:
    assert study
    assert not loaded("best", cwd=tmp_path, url=store.url) & {
        "alembic",
        "hydra",
        "omegaconf",
        "sqlalchemy",
    }


def test_a_dry_run_loads_nothing_of_the_database_and_no_scipy(tmp_path: Path) -> None:
    words = ["launch", "experiment=digits", "--dry-run", "objective._target_=math.hypot"]
    found = loaded(*words, cwd=tmp_path, url="postgresql://nobody@localhost/nothing")
    assert not found & {"alembic", "psycopg2", "scipy", "sqlalchemy", "torch"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://user@host:5432/database",
        "postgresql://user:p%40ss%3A@host/database",
        "postgres://host/database",
        "postgresql+psycopg2://postgres@/orchestrator?host=%2Fdata%2Fwith%20space&port=5432",
        "postgresql://user@host/database?sslmode=require&sslrootcert=/etc/ca.pem",
        "postgresql://us%2Fer:pass@db-1.example.org:6432/data_base-1",
    ],
)
def test_a_url_means_the_same_without_sqlalchemy(url: str, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("from a file\n")
    dialect = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
    for file in (None, str(secret)):
        _, words = dialect.create_connect_args(storage_url(url, file))  # type: ignore[no-untyped-call]
        assert connection_words(url, file) == {k: str(v) for k, v in words.items()}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user@one,two/database",
        "postgresql://user@[::1]/database",
        "postgresql://user@host/database?password=secret",
        "postgresql://user@host/database?host=a&host=b",
        "postgresql://user@host/data%20base",
        "postgresql://user@host",
        "postgresql+asyncpg://user@host/database",
        "mysql://user@host/database",
        "postgresql://user:p@ss@host/database",
    ],
)
def test_an_unusual_url_is_left_to_sqlalchemy(url: str) -> None:
    assert connection_words(url, None) is None


def test_a_password_file_that_cannot_be_read_is_left_to_sqlalchemy(tmp_path: Path) -> None:
    assert connection_words("postgresql://u@h/d", str(tmp_path / "missing")) is None


def never(_url: str) -> None:
    raise AssertionError("there is nothing to migrate")


def test_both_ways_read_the_same(store: Store, study: int) -> None:
    lease: WorkerLease = store.fleet.register(60)
    attempt = start(store, lease, study)
    assert attempt is not None
    with open_to_read(store.url, None, never) as reading:
        assert not isinstance(reading, Store)
        row = store.reads.find(None)
        assert reading.reads.find(None) == row
        assert reading.reads.spec(study) == store.reads.spec(study)
        assert reading.reads.trials(study)[0] == store.reads.trials(study)[0]
        assert reading.reads.attempts(study, 0) == store.reads.attempts(study, 0)
        ours, theirs = (r.reads.progress(row, maximize=False) for r in (reading, store))
        assert (ours.cells, ours.spent, ours.total) == (theirs.cells, theirs.spent, theirs.total)
        assert [line.row for line in reading.watch.lines([row])] == [row]
        assert reading.watch.held() == store.watch.held()
        assert reading.listing.counts(study) == store.listing.counts(study)


def test_errors_are_those_of_the_other_way(store: Store) -> None:
    url = store.url
    plain = Plain(url, None, connection_words(url, None) or {})
    with pytest.raises(OrchestratorError, match="division by zero"):
        plain.execute(Statement("SELECT 1 / 0"))
    with pytest.raises(SchemaOutdatedError, match="orchestrator db upgrade"):
        plain.execute(Statement("SELECT nothing FROM orchestrator.study"))
    (row,) = plain.execute(Statement("SELECT pg_backend_pid() AS pid"))
    with psycopg2.connect(url.replace("+psycopg2", "")) as other:
        other.cursor().execute("SELECT pg_terminate_backend(%s)", (row.pid,))
    other.close()
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        plain.execute(Statement("SELECT 1 AS one"))
    assert plain.execute(Statement("SELECT 1 AS one"))[0].one == 1, "on a new connection"
    plain.close()

    nowhere = "postgresql://user:secret@127.0.0.1:1/database"
    plain = Plain(nowhere, None, connection_words(nowhere, None) or {})
    with pytest.raises(StoreUnavailableError) as refused:
        plain.execute(Statement("SELECT 1 AS one"))
    with pytest.raises(StoreUnavailableError) as refused_too:
        Store(nowhere).reads.server()
    assert str(refused.value) == str(refused_too.value)
    assert "secret" not in str(refused.value)
