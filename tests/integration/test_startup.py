"""What a short command loads, and that reading without SQLAlchemy is reading the same."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from orchestrator.cli import main
from orchestrator.cli.call import Call
from orchestrator.config import study_spec
from orchestrator.errors import (
    ConfigError,
    OrchestratorError,
    SchemaOutdatedError,
    StoreUnavailableError,
)
from orchestrator.store import Store, WorkerLease, open_to_read
from orchestrator.store.connection.database import storage_url
from orchestrator.store.connection.plain import Plain, connection_words
from orchestrator.store.connection.statement import Statement
from tests.support.loaded import MAIN, loaded, run
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
        "rich",
        "sqlalchemy",
    }


def test_a_dry_run_loads_no_scipy_and_no_sqlalchemy_and_starts_no_database(tmp_path: Path) -> None:
    words = ["experiment=digits", "objective._target_=math.hypot", "probes.lr=null"]
    found = loaded("launch", *words, f"storage.path={tmp_path}/db", "--dry-run", cwd=tmp_path)
    assert not found & {"alembic", "pynvml", "rich", "scipy", "sqlalchemy", "torch"}
    assert not (tmp_path / "db").exists()


OBJECTIVE = """
from pathlib import Path

Path("imported").touch()

def train(cfg, trial):
    return cfg.x
"""
EXPERIMENT = """
# @package _global_
objective: {_target_: mine.train}
params: {a: 1, x: 0.5}
grid: {a: [1, 2]}
search: {x: "interval(0, 1)"}
"""


@pytest.fixture
def words(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that launch a study of two trials, in the directory `tmp_path`."""
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT.lstrip())
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    name = f"study.name=s{uuid.uuid4().hex}"
    where = [f"--config-dir={tmp_path / 'conf'}", f"paths.data={tmp_path / 'data'}"]
    return [
        *where,
        "experiment=mine",
        "hydra.run.dir=out",
        "sampler=random",
        "worker.devices=[cpu]",
        name,
    ]


@pytest.fixture
def spent(words: list[str], store: Store) -> str:
    """The name of that study, launched, with all of its budget spent."""
    made = study_spec(Call.parse("launch", words).composed)
    study_id = store.studies.launch(made).study_id
    lease = store.fleet.register(60)
    while (attempt := start(store, lease, study_id)) is not None:
        end(store, attempt)
    assert store.reads.find(made.name).reason == "budget spent"
    return made.name


def test_a_launch_with_nothing_to_do_needs_neither_the_objective_nor_sqlalchemy(
    words: list[str], spent: str, store: Store, tmp_path: Path
) -> None:
    before = store.reads.find(spent)
    slow = {"alembic", "psutil", "pynvml", "sqlalchemy", "torch"}
    assert not loaded("launch", *words, cwd=tmp_path, url=store.url) & slow
    assert not (tmp_path / "imported").exists()
    after = store.reads.find(spent)
    assert (after.state, after.reason) == ("FINISHED", "budget spent")
    assert after.launched_at > before.launched_at


@pytest.mark.parametrize("word", ["budget.trials=3", "params.x=0.25", "x=interval(0,2)"])
def test_with_any_change_the_objective_is_imported_before_the_study_is_touched(
    word: str, words: list[str], spent: str, store: Store, tmp_path: Path
) -> None:
    before = store.reads.find(spent)
    (tmp_path / "mine.py").write_text("import nowhere_to_be_found")
    done = run(MAIN, "launch", *words, word, cwd=tmp_path, url=store.url)
    assert done.returncode == ConfigError.exit_code
    assert "'mine.train' cannot be imported: ModuleNotFoundError" in done.stderr
    assert store.reads.find(spent) == before


def test_failed_trials_that_are_to_run_again_need_the_objective(
    words: list[str], spent: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").unlink()
    done = run(MAIN, "launch", *words, "retry=failed", cwd=tmp_path, url=store.url)
    assert done.returncode == ConfigError.exit_code
    assert "'mine.train' cannot be imported" in done.stderr
    assert spent in words[-1]


def test_a_launch_with_nothing_to_do_still_asks_what_may_run_here(
    words: list[str], spent: str, store: Store, tmp_path: Path
) -> None:
    done = run(
        MAIN, "launch", *words, "worker.allow_targets=[other.*]", cwd=tmp_path, url=store.url
    )
    assert done.returncode == ConfigError.exit_code
    assert "'mine.train' may not run on this host" in done.stderr
    assert spent in words[-1]


def test_a_dry_run_says_what_the_launch_would_do_to_a_study_that_is_there(
    words: list[str],
    spent: str,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = store.reads.find(spent)
    wider = [*words, "a=1,2,3", "budget.trials=6", "--dry-run"]
    slow = {"alembic", "psutil", "pynvml", "sqlalchemy", "torch"}
    assert not loaded("launch", *wider, "study.extend=true", cwd=tmp_path, url=store.url) & slow

    def said(*line: str) -> tuple[int, str]:
        code = main(["launch", *line])
        out, err = capsys.readouterr()
        return code, out + err

    monkeypatch.chdir(tmp_path)
    code, text = said(*wider, "study.extend=true")
    assert code == 0
    assert f"study {spent} is there: 4 trials would be added, 4 left to run" in text
    assert "would change grid a: [1,2] -> [1,2,3]" in text
    code, text = said(*wider)
    assert code == ConfigError.exit_code
    assert "with a different grid a ([1,2] there, [1,2,3] here)" in text
    code, text = said(*wider, "study.extend=true", "budget.per_cell=2", "budget.trials=5")
    assert code == ConfigError.exit_code
    assert "budget.trials=5" in text
    assert store.reads.find(spent) == before
    assert store.doctor.examine().findings == ()


UNTIL_THE_WORKERS = """
import subprocess, sys
from orchestrator.cli import local_workers, main, preflight

def started(self, k):
    print("loaded:", *sys.modules, file=sys.stderr)
    self._running[k] = subprocess.Popen([sys.executable, "-c", ""])

preflight.Importing.over = True  # while an objective takes long, it is imported beside that
local_workers.LocalWorkers._start = started
sys.exit(main(sys.argv[1:]))
"""


def test_a_launch_starts_its_workers_before_it_imports_sqlalchemy(
    words: list[str], store: Store, tmp_path: Path
) -> None:
    done = run(UNTIL_THE_WORKERS, "launch", *words, cwd=tmp_path, url=store.url)
    assert done.returncode == OrchestratorError.exit_code
    assert "is not finished, 2 trials left to run" in done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("loaded:")]
    assert lines
    assert all("optuna" in line and "sqlalchemy" not in line for line in lines)


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
