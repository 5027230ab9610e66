"""When a trial became news: for suggestions that must know each other, and to tell later what was
known.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    op.add_column(
        "trial",
        sa.Column("created_seq", sa.BigInteger(), comment="its first position in the news"),
        schema=SCHEMA,
    )
    op.create_index("trial_created", "trial", ["study_id", "created_seq"], schema=SCHEMA)
