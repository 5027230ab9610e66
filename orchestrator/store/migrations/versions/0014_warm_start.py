"""What a study learns from others, and which of its trials repeat theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    op.create_table(
        "prior",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column(
            "source", sa.Text(), nullable=False, comment="name of the study it was copied from"
        ),
        sa.Column(
            "taken_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("prior", sa.JSON(), nullable=False, comment="Prior.to_json()"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study_id", "source"),
        schema=SCHEMA,
    )
    origin = sa.Column(
        "copied_from",
        sa.JSON(),
        comment="study and trial of another study that `fixed` was copied from at the launch",
    )
    op.add_column("ticket", origin, schema=SCHEMA)
    # Roles that launch studies write the new table, and those that read ours read it.
    op.execute(
        f"""
        DO $$
        DECLARE who text;
        DECLARE may text;
        BEGIN
            FOR who, may IN
                SELECT DISTINCT grantee,
                    CASE table_name WHEN 'study' THEN 'SELECT' ELSE 'INSERT' END
                FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND grantee NOT IN (current_user, 'PUBLIC')
                    AND ((table_name = 'study' AND privilege_type = 'SELECT')
                        OR (table_name = 'cell' AND privilege_type = 'INSERT'))
            LOOP
                EXECUTE format('GRANT %s ON {SCHEMA}.prior TO %I', may, who);
            END LOOP;
        END $$
        """
    )
