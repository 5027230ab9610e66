"""What an attempt ran on, and what it took."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    facts = sa.Column(
        "facts", JSONB(), comment="the code, machine and device it ran on, and what it took"
    )
    op.add_column("attempt", facts, schema=SCHEMA)
