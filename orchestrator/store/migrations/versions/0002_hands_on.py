"""Studies that are paused and stopped, trials by hand, retries of what passes, the places of
checkpoints.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    op.drop_constraint("study_state", "study", schema=SCHEMA)
    op.create_check_constraint(
        "study_state",
        "study",
        "state IN ('ACTIVE', 'PAUSED', 'STOPPING', 'FINISHED')",
        schema=SCHEMA,
    )
    op.alter_column(
        "study", "state", comment="ACTIVE | PAUSED | STOPPING | FINISHED", schema=SCHEMA
    )
    op.alter_column("study", "reason", comment="why it is not ACTIVE", schema=SCHEMA)
    op.add_column(
        "study",
        sa.Column(
            "halt",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="give running trials back at once",
        ),
        schema=SCHEMA,
    )
    op.add_column(
        "ticket",
        sa.Column(
            "extra",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="by hand, on top of budget.trials",
        ),
        schema=SCHEMA,
    )
    op.add_column(
        "ticket",
        sa.Column(
            "fixed", sa.JSON(), comment="true value by path of what its next trial does not ask for"
        ),
        schema=SCHEMA,
    )
    op.add_column(
        "ticket",
        sa.Column(
            "retried_from",
            sa.Integer(),
            comment="number of the failed trial that its next one repeats",
        ),
        schema=SCHEMA,
    )
    op.create_check_constraint(
        "ticket_extra_has_cell",
        "ticket",
        "NOT extra OR (share IS NULL AND cell_id IS NOT NULL)",
        schema=SCHEMA,
    )
    op.drop_index("ticket_rest_open", "ticket", schema=SCHEMA)
    rest = sa.text("state = 'OPEN' AND share IS NULL AND NOT extra")
    op.create_index(
        "ticket_rest_open", "ticket", ["study_id", "ordinal"], schema=SCHEMA, postgresql_where=rest
    )
    extra = sa.text("state = 'OPEN' AND extra")
    op.create_index(
        "ticket_extra_open",
        "ticket",
        ["study_id", "ordinal"],
        schema=SCHEMA,
        postgresql_where=extra,
    )
    place = sa.Column(
        "checkpoints",
        sa.Text(),
        comment="the place where it keeps checkpoints; the same for all that share it",
    )
    op.add_column("worker", place, schema=SCHEMA)
    served = sa.Column(
        "studies", sa.JSON(), comment="names of the only studies it serves; null: all"
    )
    op.add_column("worker", served, schema=SCHEMA)
    retries = sa.Column(
        "retries",
        sa.Integer(),
        server_default="0",
        nullable=False,
        comment="attempts that failed and were run again",
    )
    op.add_column("trial", retries, schema=SCHEMA)
    repeats = sa.Column(
        "retried_from", sa.Integer(), comment="number of the failed trial that this one repeats"
    )
    op.add_column("trial", repeats, schema=SCHEMA)
    op.add_column(
        "attempt",
        sa.Column("reason", sa.Text(), comment="why it was interrupted, lost or retried"),
        schema=SCHEMA,
    )
    op.alter_column(
        "attempt",
        "outcome",
        comment="completed | pruned | failed | interrupted | lost | retried",
        schema=SCHEMA,
    )
