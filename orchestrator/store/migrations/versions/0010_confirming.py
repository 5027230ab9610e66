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
    op.create_index(
        "ticket_confirming",
        "ticket",
        ["study_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("confirms IS NOT NULL"),
    )
    # A role for workers that may write the other columns needs this one as well.
    op.execute(
        f"""
        DO $$
        DECLARE who text;
        BEGIN
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.column_privileges
                WHERE table_schema = '{SCHEMA}' AND table_name = 'ticket'
                    AND column_name = 'fixed' AND privilege_type = 'UPDATE' AND grantee <> 'PUBLIC'
            LOOP
                EXECUTE format('GRANT UPDATE (confirms) ON {SCHEMA}.ticket TO %I', who);
            END LOOP;
        END $$
        """
    )
    op.create_check_constraint(
        "ticket_confirms",
        "ticket",
        "confirms IS NULL OR (share IS NULL AND NOT extra)",
        schema=SCHEMA,
    )
