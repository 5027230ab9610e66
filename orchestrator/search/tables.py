"""Optuna's own tables: their schema revision, their creation, and Optuna's storage on them for the
dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import optuna
from optuna.storages import RDBStorage

from orchestrator.errors import SchemaOutdatedError, StoreUnavailableError


@cache
def optuna_schema_head() -> str:
    """The Alembic revision of the tables that the installed Optuna writes."""
    return RDBStorage("sqlite://").get_head_version()


def create_optuna_tables(url: str) -> None:
    """Creates Optuna's tables and stamps their revision, or leaves them as they are; callers take
    turns.

    Raises:
        SchemaOutdatedError: the tables are of another Optuna's schema.
        StoreUnavailableError: the database cannot be reached or refused.
    """
    with _translated():
        RDBStorage(url).engine.dispose()


def open_storage(url: str) -> RDBStorage:
    """Optuna's own storage on existing tables; its connections are checked before use, so it
    outlives a server restart.

    Raises:
        SchemaOutdatedError: the tables are of another Optuna's schema.
        StoreUnavailableError: the database cannot be reached or refused.
    """
    with _translated():
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=True)


@contextmanager
def _translated() -> Iterator[None]:
    # Neither SQLAlchemy's messages nor Optuna's are repeated where they could hold the URL and its
    # password.
    try:
        yield
    except RuntimeError as error:
        if "schema" not in str(error):
            raise
        raise SchemaOutdatedError(
            f"Optuna's tables have a schema that the installed Optuna {optuna.__version__} does "
            "not know; run 'orchestrator db upgrade', or install the Optuna that wrote them"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("sqlalchemy", "optuna", "psycopg2")):
            raise
        raise StoreUnavailableError(
            f"Optuna's tables cannot be opened: {type(error).__name__}"
        ) from error
