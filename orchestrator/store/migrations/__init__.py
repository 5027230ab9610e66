"""Creates and upgrades both schemas: ours by Alembic under a version table of its own, Optuna's by
Optuna.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.errors import SchemaOutdatedError
from orchestrator.store.connection.database import Database
from orchestrator.store.schema import KNOWN_OPTUNA_REVISIONS, SCHEMA

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "version"
OLDEST_SERVER = 140000
_MAY_CREATE = sa.text(
    "SELECT has_schema_privilege('public', 'CREATE') AND "
    "CASE WHEN to_regnamespace('orchestrator') IS NULL THEN "
    "has_database_privilege(current_database(), 'CREATE') "
    "ELSE has_schema_privilege('orchestrator', 'CREATE') END"
)
_LOCK = 0x6F72636865737472  # "orchestr": one migration at a time in a database


def migrate(database: Database, create_optuna_tables: Callable[[str], None]) -> None:
    """Brings both schemas up to date; when ten start at once, one does the work and the others wait
    for it.

    Args:
        create_optuna_tables: creates Optuna's tables at a URL unless they are there.

    Raises:
        SchemaOutdatedError: Optuna's tables, or ours, are of a revision that this version does not
            know.
    """
    with database.transaction() as connection:
        version = int(connection.execute(sa.text("SHOW server_version_num")).scalar_one())
        if version < OLDEST_SERVER:
            raise SchemaOutdatedError(
                f"the database server is PostgreSQL {version // 10000}; PostgreSQL "
                f"{OLDEST_SERVER // 10000} or newer is needed"
            )
        if _is_current(connection):
            return
    with database.transaction(statement_s=600, lock_s=600, idle_s=0) as connection:
        # A transaction-level lock: a session-level one would leak through a pooler in transaction
        # mode.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        if _is_current(connection):
            return
        if not connection.execute(_MAY_CREATE).scalar_one():
            raise SchemaOutdatedError(
                "the schemas of this database are missing or outdated, and this role may not "
                "change them; run as their owner: orchestrator db upgrade"
            )
        create_optuna_tables(database.url.render_as_string(hide_password=False))
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


def _is_current(connection: Connection) -> bool:
    all_revisions, ours = revisions(), None
    if connection.execute(
        sa.text("SELECT to_regclass(:table)"), {"table": f"{SCHEMA}.{VERSION_TABLE}"}
    ).scalar_one():
        ours = connection.execute(
            sa.text(f"SELECT version_num FROM {SCHEMA}.{VERSION_TABLE}")
        ).scalar_one_or_none()
    if ours is not None and ours not in all_revisions:
        raise SchemaOutdatedError(
            f"the schema of this database has revision {ours}, which a newer orchestrator "
            "created; install that version"
        )
    has_optuna = (
        connection.execute(sa.text("SELECT to_regclass('alembic_version')")).scalar_one()
        is not None
    )
    if not has_optuna:
        return False
    revision = connection.execute(
        sa.text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    if revision is not None and revision not in KNOWN_OPTUNA_REVISIONS:
        raise SchemaOutdatedError(
            f"Optuna's tables in this database have revision {revision}; this version only writes "
            f"{', '.join(KNOWN_OPTUNA_REVISIONS)}. For an older one run: optuna storage upgrade "
            "--storage URL"
        )
    return revision is not None and ours == all_revisions[-1]
