"""Memory of devices and hosts, and the cells that ran out of it: closed for a device type, not for
all.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    share = sa.Column(
        "gpu_bytes",
        sa.BigInteger(),
        comment="its share of the GPU's memory, 0: not known; null: the CPU",
    )
    op.add_column("slot", share, schema=SCHEMA)
    ram = sa.Column(
        "host_bytes",
        sa.BigInteger(),
        server_default="0",
        nullable=False,
        comment="RAM of its host, 0: not known",
    )
    op.add_column("slot", ram, schema=SCHEMA)
    name = sa.Column("device_name", sa.Text(), comment="of the slot it ran on, as are the next two")
    op.add_column("attempt", name, schema=SCHEMA)
    op.add_column("attempt", sa.Column("gpu_bytes", sa.BigInteger()), schema=SCHEMA)
    op.add_column(
        "attempt",
        sa.Column("host_bytes", sa.BigInteger(), server_default="0", nullable=False),
        schema=SCHEMA,
    )
    peak = sa.Column(
        "peak_bytes", sa.BigInteger(), comment="most memory that it held, of one that ran out of it"
    )
    op.add_column("attempt", peak, schema=SCHEMA)
    op.create_table(
        "shortage",
        sa.Column("cell_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "memory",
            sa.Text(),
            nullable=False,
            comment="gpu | cpu: RAM, on the CPU | host: RAM, on a GPU",
        ),
        sa.Column("device_name", sa.Text(), nullable=False),
        sa.Column(
            "bytes",
            sa.BigInteger(),
            nullable=False,
            comment="how much there is of that memory, 0: not known",
        ),
        sa.Column(
            "in_a_row",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="trials of the cell that ran out of it",
        ),
        sa.Column(
            "closed",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="no such device gets a trial of the cell",
        ),
        sa.Column("reason", sa.Text(), comment="why it is closed"),
        sa.Column("trial_id", sa.BigInteger(), comment="the trial that closed it"),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("closed = (reason IS NOT NULL)", name="shortage_has_reason"),
        sa.CheckConstraint("memory IN ('gpu', 'cpu', 'host')", name="shortage_memory"),
        sa.ForeignKeyConstraint(["cell_id"], ["orchestrator.cell.cell_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cell_id", "memory", "device_name", "bytes"),
        schema=SCHEMA,
    )
