"""Indexes and vacuuming for grids of 100,000 cells and for thousands of workers."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    # Foreign keys of their own: without an index, deleting a study reads all trials for each of its
    # cells and tickets.
    op.create_index("trial_by_ticket", "trial", ["ticket_id"], schema=SCHEMA)
    op.create_index("trial_by_cell", "trial", ["cell_id"], schema=SCHEMA)
    op.drop_index("worker_by_lease", "worker", schema=SCHEMA)
    active = sa.text("state = 'ACTIVE'")
    op.create_index(
        "worker_active", "worker", ["process_scope"], schema=SCHEMA, postgresql_where=active
    )
    # A claim steps over the index entries of tickets claimed before it until they are vacuumed
    # away. By the server's default that is after a fifth of the table has changed; so it is within
    # a minute of a thousand changes, whatever the grid's size.
    for table in ("ticket", "trial", "worker"):
        op.execute(
            f"ALTER TABLE {SCHEMA}.{table} SET (autovacuum_vacuum_scale_factor = 0, "
            "autovacuum_vacuum_threshold = 1000)"
        )
