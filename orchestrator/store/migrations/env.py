"""Alembic's entry: runs the migrations on the connection that `migrate` opened, inside its
transaction.
"""

from alembic import context
from sqlalchemy import text

from orchestrator.store.migrations import VERSION_TABLE
from orchestrator.store.schema import metadata
from orchestrator.store.states import SCHEMA

connection = context.config.attributes["connection"]
connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=lambda name, kind, parents: kind != "schema" or name == SCHEMA,
    transactional_ddl=False,  # the caller's transaction is around all of it
)
context.run_migrations()
