"""Creates and upgrades both schemas: ours by Alembic under a version table of its own, Optuna's by
Optuna.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import DeadlockError, SchemaOutdatedError
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import AnyConnection, Statement, answer, answers, send
from orchestrator.store.states import KNOWN_OPTUNA_REVISIONS, SCHEMA

if TYPE_CHECKING:
    from alembic.config import Config

    from orchestrator.store.connection.database import Database

VERSION_TABLE = "version"
OLDEST_SERVER = 140000
_MAY_CREATE = Statement(
    "SELECT has_schema_privilege('public', 'CREATE') AND "
    "CASE WHEN to_regnamespace('orchestrator') IS NULL THEN "
    "has_database_privilege(current_database(), 'CREATE') "
    "ELSE has_schema_privilege('orchestrator', 'CREATE') END AS may"
)
_SERVER = Statement(
    f"""
    SELECT CAST(current_setting('server_version_num') AS int) AS version,
        to_regclass('{SCHEMA}.{VERSION_TABLE}') IS NOT NULL AS has_ours,
        to_regclass('alembic_version') IS NOT NULL AS has_optunas
    """
)
_OURS = Statement(f"SELECT version_num FROM {SCHEMA}.{VERSION_TABLE}")
_OPTUNAS = Statement("SELECT version_num FROM alembic_version")
_OUR_TABLES = Statement(
    f"""
    SELECT '{SCHEMA}.' || quote_ident(t.tablename) AS name FROM pg_tables t
    WHERE t.schemaname = '{SCHEMA}' AND t.tablename <> '{VERSION_TABLE}'
    ORDER BY t.tablename <> 'study', t.tablename
    """
)
_TRIES = 5
_LOCK = 0x6F72636865737472  # "orchestr": one migration at a time in a database


def migrate(database: Database, create_optuna_tables: Callable[[str], None]) -> None:
    """Brings both schemas up to date; when ten start at once, one does the work and the others wait
    for it. Workers of an earlier version may run meanwhile: they wait until it is done.

    Args:
        create_optuna_tables: creates Optuna's tables at a URL unless they are there.

    Raises:
        SchemaOutdatedError: Optuna's tables, or ours, are of a revision that this version does not
            know.
    """
    if is_current(database):
        return
    for tries_left in reversed(range(_TRIES)):
        try:
            _upgrade(database, create_optuna_tables)
            return
        except DeadlockError:  # with workers, whose transactions are short
            if not tries_left:
                raise


def _upgrade(database: Database, create_optuna_tables: Callable[[str], None]) -> None:
    """What `migrate` does, in one transaction."""
    with database.transaction(statement_s=600, lock_s=600, idle_s=0) as connection:
        # A transaction-level lock: a session-level one would leak through a pooler in transaction
        # mode.
        send(connection, f"SELECT pg_advisory_xact_lock({_LOCK})".encode())
        if _is_current(connection):
            return
        allowed = answer(connection, _MAY_CREATE)
        if allowed is None or not allowed.may:
            raise SchemaOutdatedError(
                "the schemas of this database are missing or outdated, and this role may not "
                "change them; run as their owner: orchestrator db upgrade"
            )
        create_optuna_tables(database.url.render_as_string(hide_password=False))
        # All of ours at once, before any is changed: a deadlock comes now, where little is lost, or
        # not at all. Most transactions of workers begin with the study.
        if tables := [str(row.name) for row in answers(connection, _OUR_TABLES)]:
            send(connection, f"LOCK TABLE {', '.join(tables)}".encode())
        from alembic import command  # slow to import, and seldom needed

        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if not _is_current(connection):
            raise SchemaOutdatedError("the schemas could not be brought up to date")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def revisions() -> list[str]:
    """Every revision of our schema, the newest last: each begins the name of its file."""
    return sorted(path.stem[:4] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))


def is_current(database: Source) -> bool:
    """Whether both schemas are as this version needs them.

    Raises:
        SchemaOutdatedError: as `migrate`.
    """
    with database.transaction() as connection:
        return _is_current(connection)


def _is_current(connection: AnyConnection) -> bool:
    server = answer(connection, _SERVER)
    assert server is not None
    if server.version < OLDEST_SERVER:
        raise SchemaOutdatedError(
            f"the database server is PostgreSQL {server.version // 10000}; PostgreSQL "
            f"{OLDEST_SERVER // 10000} or newer is needed"
        )
    all_revisions = revisions()
    ours = _version(connection, _OURS) if server.has_ours else None
    if ours is not None and ours not in all_revisions:
        raise SchemaOutdatedError(
            f"the schema of this database has revision {ours}, which a newer orchestrator "
            "created; install that version"
        )
    if not server.has_optunas:
        return False
    revision = _version(connection, _OPTUNAS)
    if revision is not None and revision not in KNOWN_OPTUNA_REVISIONS:
        raise SchemaOutdatedError(
            f"Optuna's tables in this database have revision {revision}; this version only writes "
            f"{', '.join(KNOWN_OPTUNA_REVISIONS)}. For an older one run: optuna storage upgrade "
            "--storage URL"
        )
    return revision is not None and ours == all_revisions[-1]


def _version(connection: AnyConnection, statement: Statement) -> str | None:
    found = answer(connection, statement)
    return None if found is None else str(found.version_num)
