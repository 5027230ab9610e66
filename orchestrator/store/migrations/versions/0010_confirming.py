"""Tickets whose trials repeat the parameters of a leading trial with another seed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    confirms = sa.Column(
        "confirms",
        sa.Integer(),
        comment="number of the trial whose parameters it repeats with another seed",
    )
    op.add_column("ticket", confirms, schema=SCHEMA)
    op.create_check_constraint(
        "ticket_confirms",
        "ticket",
        "confirms IS NULL OR (share IS NULL AND NOT extra AND state IN ('LIVE', 'SPENT'))",
        schema=SCHEMA,
    )
