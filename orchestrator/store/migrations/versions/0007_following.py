"""Which studies a launch follows, and which a worker cannot serve."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    followed = "a launch follows it, and will have said so again by then"
    op.add_column(
        "study",
        sa.Column("followed_until", sa.DateTime(timezone=True), comment=followed),
        schema=SCHEMA,
    )
    refusals = sa.Column(
        "refusals", JSONB(), comment="by study_id: a revision that it cannot serve, and why"
    )
    op.add_column("worker", refusals, schema=SCHEMA)
