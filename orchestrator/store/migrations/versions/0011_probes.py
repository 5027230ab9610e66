"""What probes find in a cell on a device type."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"
_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "probe",
        sa.Column("probe_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("cell_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "device_name", sa.Text(), nullable=False, comment="of the slot it was measured on"
        ),
        sa.Column(
            "bytes",
            sa.BigInteger(),
            nullable=False,
            comment="how much memory that device type has, a GPU's or the host's; 0: not known",
        ),
        sa.Column(
            "key",
            sa.Text(),
            nullable=False,
            comment="of the declaration and the code, see probe_key",
        ),
        sa.Column(
            "state",
            sa.Text(),
            nullable=False,
            comment="OPEN: to be measured again | RUNNING | DONE | FAILED",
        ),
        sa.Column("worker_id", sa.BigInteger(), comment="of the last attempt"),
        sa.Column("token", sa.BigInteger(), nullable=False, comment="of the last attempt"),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times a child was started",
        ),
        sa.Column(
            "lost",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="attempts whose worker fell silent",
        ),
        sa.Column(
            "retries",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="attempts that failed and were run again",
        ),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column(
            "runs_dir",
            sa.Text(),
            nullable=False,
            comment="root of the run directories on that host",
        ),
        sa.Column("measurement", sa.JSON(), comment="what it found, see measurement.Measurement"),
        sa.Column("reason", sa.Text(), comment="why it FAILED, or was given back"),
        sa.Column("seconds", sa.Double(), comment="how long the last attempt ran"),
        sa.Column("facts", JSONB(), comment="the code, machine and device it ran on"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("state IN ('OPEN', 'RUNNING', 'DONE', 'FAILED')", name="probe_state"),
        sa.CheckConstraint(
            "state <> 'DONE' OR measurement IS NOT NULL", name="probe_has_measurement"
        ),
        sa.CheckConstraint("state <> 'FAILED' OR reason IS NOT NULL", name="probe_has_reason"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["cell_id"], ["orchestrator.cell.cell_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["worker_id"], ["orchestrator.worker.worker_id"]),
        sa.PrimaryKeyConstraint("probe_id"),
        sa.UniqueConstraint("cell_id", "name", "device_name", "bytes", "key", name="probe_once"),
        schema=SCHEMA,
    )
    who = sa.Column("probe_id", sa.BigInteger(), comment="or the probe that did")
    op.add_column("shortage", who, schema=SCHEMA)
    op.create_index("probe_by_study", "probe", ["study_id"], schema=SCHEMA)
    op.create_index(
        "probe_running",
        "probe",
        ["cell_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    # Roles that may read and write what workers write need the new table as well, and workers
    # record a probe's artifacts with the study.
    op.execute(
        f"""
        DO $$
        DECLARE who text;
        BEGIN
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND table_name = 'shortage'
                    AND privilege_type = 'INSERT'
                    AND grantee NOT IN (current_user, 'PUBLIC')
            LOOP
                EXECUTE format('GRANT INSERT, UPDATE ON {SCHEMA}.probe TO %I', who);
                EXECUTE format('GRANT INSERT ON study_system_attributes TO %I', who);
            END LOOP;
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND table_name = 'shortage'
                    AND privilege_type = 'SELECT'
                    AND grantee NOT IN (current_user, 'PUBLIC')
            LOOP
                EXECUTE format('GRANT SELECT ON {SCHEMA}.probe TO %I', who);
            END LOOP;
        END $$
        """
    )
