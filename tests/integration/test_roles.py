"""The database roles of docs/security.md: with the very statements that it tells, they can do their
work and nothing more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import optuna
import psycopg2
import pytest
from psycopg2 import errors
from sqlalchemy.engine import make_url

from orchestrator.dashboard.server import pages
from orchestrator.errors import OrchestratorError
from orchestrator.model import Axis, Budget, Completed, Failed, Pruned, Report, Searched
from orchestrator.prior import Enqueued, Observation, Prior
from orchestrator.search import create_optuna_tables
from orchestrator.settings import StopSettings
from orchestrator.stages import Inherited
from orchestrator.store import Silent, SlotOffer, Store
from tests.integration.test_stages import begun, chain, finish, second_of
from tests.support.postgres import TestServer
from tests.support.revised import Suggesting, extended
from tests.support.studies import PLACE, RUNNER, end, spec, start

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROLES = ("orchestrator_worker", "orchestrator_launch", "orchestrator_reader")


@dataclass(frozen=True)
class Roles:
    """A database whose owner has run what the page says; `url` is the owner's."""

    url: str

    def of(self, role: str) -> str:
        """A URL whose sessions have the role's rights; the embedded server lets nobody log in but
        its owner.
        """
        return (
            make_url(self.url)
            .update_query_dict({"options": f"-crole={_here(role)}"})
            .render_as_string(hide_password=False)
        )

    @contextmanager
    def store(self, role: str) -> Iterator[Store]:
        store = Store(self.of(role))
        store.migrate(create_optuna_tables)
        yield store
        store.rest()

    def execute(self, role: str | None, statements: str) -> list[tuple[object, ...]]:
        url = self.url if role is None else self.of(role)
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statements)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def _here(text: str) -> str:
    """Roles are of the whole server, which other tests use at the same time: so those of this
    process get names of its own.
    """
    return re.sub(rf"\b({'|'.join(ROLES)})\b", rf"\1_{os.getpid()}", text)


@pytest.fixture(scope="module")
def roles(database_server: TestServer) -> Iterator[Roles]:
    create, grant = (
        _here(block)
        for block in re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    )
    with database_server.prepared() as url:
        made = Roles(url)
        made.execute(None, create)
        for _ in range(2):
            made.execute(None, grant)
        yield made
    with database_server.empty() as url:
        Roles(url).execute(None, f"DROP ROLE {', '.join(map(_here, ROLES))}")


# --------------------------------------------------------------------------------- what they can do


def test_studies_are_extended_end_early_and_follow_each_other_with_the_roles(roles: Roles) -> None:
    source = Prior("source", 77, (Observation(0, {"x": 0.5, "a": 0}, 1.0),))
    first = [Enqueued(0, {"x": 0.2}, "source", 0)]
    declared = spec(
        "changing",
        cells=2,
        params={"a": 0, "x": 0.5, "y": 0.3, "b": 1},
        budget=Budget(12, 2, max_failures_at_start=None),
        stop_when=StopSettings(patience=2),
        warm_start=("source",),
        enqueue_best=1,
    )
    other = replace(
        declared,
        grid=(Axis("a", (1, 2)), Axis("b", (1, 2))),
        search=(Searched("x", "float", 0.0, 2.0), Searched("y", "float", 0.0, 1.0)),
        budget=Budget(16, 2, max_failures_at_start=None),
    )
    with roles.store("orchestrator_worker") as store:
        with roles.store("orchestrator_launch") as people:
            study = people.studies.launch(declared, priors=[source], enqueued=first).study_id
            worker = Suggesting(store, study)
            notices = store.notices("hook")
            notices.take()
            worker.run(4)
            claimed = worker.claim()
            assert claimed is not None
            assert len(extended(people, other).changes) > 2
            people.interventions.repeat(study, 1, 1)
        worker.run(7)
        assert store.stopping.counts_from(study) == 4
        assert store.stopping.end_study(study, "enough", worker.row.launched_at)
        assert [notice.kind for notice in notices.take()] == ["finished"]
    stages = chain("rounds")
    with roles.store("orchestrator_launch") as people:
        begun_first = begun(people.stages.launch(stages, 0, Inherited()))
        finish(people, people.fleet.register(60), begun_first.study_id)
        assert people.stages.settle(begun_first.study_id)
        begun(people.stages.go_on(stages, 1, second_of(people, stages)))
        people.stages.hold("rounds", "STOPPED", "by me")
    with roles.store("orchestrator_reader") as store:
        assert store.doctor.examine().findings == ()


def test_a_worker_lives_its_whole_life_with_the_role_for_workers(roles: Roles) -> None:
    with roles.store("orchestrator_launch") as people:
        runner = replace(RUNNER, max_attempts=1, retries=1)
        study = people.studies.launch(
            spec("life", cells=2, per_cell=2, trials=6, runner=runner)
        ).study_id
        people.interventions.enqueue(study, {"a": 0}, {"x": 0.5})
    with roles.store("orchestrator_worker") as store:
        lease, other = store.fleet.register(60), store.fleet.register(60)
        assert store.fleet.claim_slot(lease, [SlotOffer("host", "GPU", 0, "H100")]) is not None
        store.fleet.release_slot(lease)
        store.fleet.renew(lease, "working")
        store.fleet.refuse(lease, {study: (1, "no module")})
        short = Failed("oom", "CUDA out of memory", memory="device")
        for outcome in (
            Completed((1.0,), {"note": 1}),
            Completed((2.0,)),
            Pruned(1),
            Failed("exception", "broken"),
            short,
        ):
            claim = start(store, lease, study)
            assert claim is not None
            store.ledger.report(claim, Report({1: 0.5}, {"note": 1}))
            store.ledger.report(claim, Report({1: 0.6, 2: 0.7}, {"note": 2}))
            end(store, claim, outcome)
        claim = start(store, lease, study)
        assert claim is not None
        assert store.ledger.retry(claim, Failed("exception", "network"), Report({1: 0.5}))
        claim = start(store, lease, study)
        assert claim is not None
        store.ledger.release(claim, "told to stop")
        unstarted = store.ledger.claim_one(other, study, PLACE)
        assert unstarted is not None
        assert store.ledger.evict(Silent(other.worker_id, dead=True, reason="died"))
        assert store.news.since(study, 0)
        while (claim := start(store, lease, study)) is not None:
            end(store, claim)
        store.ledger.end_studies()
        store.ledger.deregister(lease, "done")
        assert store.reads.find("life").state == "FINISHED"


def test_people_launch_and_change_studies_with_the_role_for_launches(roles: Roles) -> None:
    with roles.store("orchestrator_launch") as store:
        study = store.studies.launch(spec("people", cells=2)).study_id
        store.studies.follow(study, 30.0)
        assert store.studies.launch(spec("people", cells=2, trials=4)).added == 2
        store.interventions.pause(study, "me", now=True)
        store.interventions.resume(study, "me")
        lease = store.fleet.register(60)
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, Failed("exception", "broken"))
        assert store.interventions.retry(study, None)
        store.interventions.enqueue(study, {"a": 1}, {})
        store.interventions.stop(study, "me")
        assert store.ledger.end_studies() == [study]
        store.ledger.deregister(lease, "done")


def test_a_role_without_the_right_to_name_the_objectives_launches_all_the_same(
    roles: Roles,
) -> None:
    both = "orchestrator_launch, orchestrator_worker"  # the first has the second's rights
    change = _here(f"{{}} INSERT ON study_system_attributes {{}} {both}")
    roles.execute(None, change.format("REVOKE", "FROM"))
    try:
        with roles.store("orchestrator_launch") as people:
            assert people.studies.launch(spec("nameless")).created
            assert optuna.load_study(study_name="nameless", storage=roles.url).metric_names is None
            roles.execute(None, change.format("GRANT", "TO"))
            people.studies.launch(spec("nameless"))
    finally:
        roles.execute(None, change.format("GRANT", "TO"))
    assert optuna.load_study(study_name="nameless", storage=roles.url).metric_names == list(
        spec().metrics
    )


def test_a_launch_clears_what_a_study_deleted_elsewhere_left(roles: Roles) -> None:
    with roles.store("orchestrator_launch") as store:
        study = store.studies.launch(spec("deleted")).study_id
        optuna.delete_study(study_name="deleted", storage=roles.url)
        store.studies.launch(spec("next"))
        assert (
            roles.execute(None, f"SELECT 1 FROM orchestrator.cell WHERE study_id = {study}") == []
        )


def test_who_only_reads_sees_all_and_writes_nothing(roles: Roles) -> None:
    with roles.store("orchestrator_launch") as people:
        people.studies.launch(spec("read"))
    with roles.store("orchestrator_reader") as store:
        row = store.reads.find("read")
        assert len(store.reads.progress(row, maximize=True).cells) == 4
        store.reads.trials(row.study_id)
        store.reads.workers()
        assert store.doctor.examine().findings == ()
        storage = optuna.storages.RDBStorage(store.url)
        assert optuna.load_study(study_name="read", storage=storage).trials == []
        for path in ("/api/studies", f"/api/studies/{row.study_id}"):
            assert page(pages(store, storage), path) == "200 OK"
        storage.engine.dispose()


def page(app: WSGIApplication, path: str) -> str:
    """The status that a web application answers a GET with."""
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    statuses: list[str] = []

    def start_response(status: str, *_: Any) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda _: None

    b"".join(app(environ, start_response))
    return statuses[0]


# ------------------------------------------------------------------------------ what they cannot do

FOR_NOBODY = {
    "create a table": "CREATE TABLE mine (a int)",
    "create a table beside ours": "CREATE TABLE orchestrator.mine (a int)",
    "create a temporary table": "CREATE TEMP TABLE mine (a int)",
    "create a schema": "CREATE SCHEMA mine",
    "create an extension": "CREATE EXTENSION {extension}",
    "create a function": "CREATE FUNCTION orchestrator.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "create a role": "CREATE ROLE mine",
    "create a database": "CREATE DATABASE mine",
    "drop a table of Optuna": "DROP TABLE trials",
    "drop a table of ours": "DROP TABLE orchestrator.trial",
    "drop a schema": "DROP SCHEMA orchestrator CASCADE",
    "change a table": "ALTER TABLE orchestrator.trial DROP COLUMN token",
    "disable the promises": "DROP INDEX orchestrator.trial_one_a_ticket",
    "become the owner": "ALTER TABLE trials OWNER TO CURRENT_USER",
    "empty a table of Optuna": "TRUNCATE trial_values",
    "empty a table of ours": "TRUNCATE orchestrator.event",
    "delete trials of Optuna": "DELETE FROM trials",
    "delete studies of Optuna": "DELETE FROM studies",
    "rename a study": "UPDATE studies SET study_name = 'x'",
    "delete events": "DELETE FROM orchestrator.event",
    "delete attempts": "DELETE FROM orchestrator.attempt",
    "write Optuna's version": "UPDATE alembic_version SET version_num = 'x'",
    "write our version": "UPDATE orchestrator.version SET version_num = 'x'",
    "run a program": "COPY trials TO PROGRAM 'cat'",
    "write a file": "COPY trials TO '/tmp/mine'",
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "change the server": "ALTER SYSTEM SET fsync = off",
}
NOT_FOR_WORKERS = {
    "change what a study runs": (
        """UPDATE orchestrator.study SET spec = '{"objective": {"_target_": "os.system"}}'"""
    ),
    "create a study": (
        "INSERT INTO orchestrator.study (study_id, name, spec, spec_hash) VALUES (1, 'x', "
        "'{}', 'x')"
    ),
    "create a study of Optuna": "INSERT INTO studies (study_name) VALUES ('x')",
    "delete studies": "DELETE FROM orchestrator.study",
    "create tickets": "INSERT INTO orchestrator.ticket (study_id, ordinal) VALUES (1, 1)",
    "delete tickets": "DELETE FROM orchestrator.ticket",
    "change a cell": "UPDATE orchestrator.cell SET values = '{}'",
}
ATTACKS = [(role, name, sql) for role in ROLES for name, sql in FOR_NOBODY.items()]
ATTACKS += [
    (role, name, sql)
    for role in ROLES
    if role != "orchestrator_launch"
    for name, sql in NOT_FOR_WORKERS.items()
]


@pytest.mark.parametrize(
    ("role", "name", "sql"), ATTACKS, ids=[f"{role}: {name}" for role, name, _ in ATTACKS]
)
def test_a_role_is_refused_to(role: str, name: str, sql: str, roles: Roles) -> None:
    # As few words as may stand in an extension's file: some server builds bring few extensions.
    available = roles.execute(
        None,
        "SELECT name FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY name "
        "LIMIT 1",
    )
    sql = sql.replace("{extension}", str(available[0][0] if available else "plpgsql"))
    connection = psycopg2.connect(roles.of(role).replace("+psycopg2", ""))
    connection.autocommit = True  # as CREATE DATABASE must be
    with pytest.raises(errors.InsufficientPrivilege), connection.cursor() as cursor:
        cursor.execute(sql)
    connection.close()


def test_who_only_reads_has_no_other_right_on_any_table(roles: Roles) -> None:
    writable = roles.execute(
        None,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = "
        f"c.relnamespace CROSS JOIN (SELECT '{_here('orchestrator_reader')}'::name AS role) AS r "
        "WHERE n.nspname IN ('public', 'orchestrator') AND c.relkind = 'r' AND "
        "(has_table_privilege(r.role, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, "
        "TRIGGER') OR has_any_column_privilege(r.role, c.oid, 'INSERT, UPDATE, REFERENCES'))",
    )
    assert writable == []


def test_only_the_roles_may_connect_and_none_is_more_than_it_seems(roles: Roles) -> None:
    (acl,) = roles.execute(
        None, "SELECT datacl::text FROM pg_database WHERE datname = current_database()"
    )[0]
    granted = {entry.partition("/")[0] for entry in re.findall(r"[^{},]+", str(acl))}
    assert {f"{_here(role)}=c" for role in ROLES} == {
        entry for entry in granted if entry.startswith("orchestrator_")
    }
    assert not any(entry.startswith("=") for entry in granted), "nothing for everybody"
    names = ", ".join(f"'{_here(role)}'" for role in ROLES)
    members = roles.execute(
        None,
        "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN "
        f"pg_roles u ON u.oid = m.member WHERE u.rolname IN ({names})",
    )
    assert members == [(_here("orchestrator_worker"),)], (
        "of another role only who launches is a member"
    )
    flags = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
    assert (
        roles.execute(
            None, f"SELECT rolname FROM pg_roles WHERE rolname IN ({names}) AND ({flags})"
        )
        == []
    )


def test_a_role_that_may_not_migrate_leaves_an_empty_database_as_it_is(
    empty_database_url: str, roles: Roles
) -> None:
    name = make_url(empty_database_url).database
    store = Store(
        make_url(roles.of("orchestrator_reader"))
        .set(database=name)
        .render_as_string(hide_password=False)
    )
    with pytest.raises(OrchestratorError):
        store.migrate(create_optuna_tables)
    store.rest()
    assert (
        Roles(empty_database_url).execute(
            None, "SELECT relname FROM pg_class WHERE relname IN ('trials', 'trial')"
        )
        == []
    )
