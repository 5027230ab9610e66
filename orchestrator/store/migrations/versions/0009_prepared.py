"""A trial that is prepared and has not begun gets a state of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    states = "'CLAIMED', 'PREPARED', 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL'"
    op.drop_constraint("trial_state", "trial", schema=SCHEMA)
    op.create_check_constraint("trial_state", "trial", f"state IN ({states})", schema=SCHEMA)
    comment = "CLAIMED | PREPARED | RUNNING | COMPLETE | PRUNED | FAIL"
    op.alter_column("trial", "state", comment=comment, schema=SCHEMA)
    live = sa.text("state IN ('CLAIMED', 'PREPARED', 'RUNNING')")
    for name, columns in (
        ("trial_live", ["study_id", "trial_id"]),
        ("trial_by_worker", ["worker_id"]),
    ):
        op.drop_index(name, "trial", schema=SCHEMA)
        op.create_index(name, "trial", columns, schema=SCHEMA, postgresql_where=live)

    # What a worker holds stays as it is: one of the version before would not find it again under
    # another state. It begins it, gives it back, or is evicted, which gives the state its name.
    op.execute(
        f"UPDATE {SCHEMA}.trial SET state = 'PREPARED' WHERE state = 'RUNNING' AND attempts = 0 "
        "AND worker_id IS NULL"
    )
    op.create_check_constraint(
        "trial_prepared", "trial", "state <> 'PREPARED' OR attempts = 0", schema=SCHEMA
    )
