"""Random tokens, which attempts keep, and what workers say that they hold: for a database that goes
back in time.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    # A sequence goes back with its database, and then hands out again what somebody still shows: no
    # token is drawn from `token_seq` any more. It stays for workers of the version before, which
    # may be in the middle of a trial.
    token = sa.Column(
        "token",
        sa.BigInteger(),
        comment="of the claim under which it began; null: older than this column",
    )
    op.add_column("attempt", token, schema=SCHEMA)
    holds: sa.Column[list[int]] = sa.Column(
        "holds",
        sa.ARRAY(sa.BigInteger()),
        comment="tokens of the trials that it says it holds; null: not said",
    )
    op.add_column("worker", holds, schema=SCHEMA)
