"""Revisions of a study, and which one each trial was made under."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"


def upgrade() -> None:
    op.create_table(
        "revision",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False, comment="from 1"),
        sa.Column("spec", sa.JSON(), nullable=False, comment="StudySpec.to_json(), as it began"),
        sa.Column(
            "made_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "changes", sa.JSON(), nullable=False, comment="in words, a list; empty for the first"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study_id", "revision"),
        schema=SCHEMA,
    )
    op.execute(
        f"""
        INSERT INTO {SCHEMA}.revision (study_id, revision, spec, made_at, changes)
        SELECT s.study_id, 1, s.spec, s.created_at, '[]' FROM {SCHEMA}.study s
        """
    )
    op.alter_column("study", "revision", comment="counts its launches", schema=SCHEMA)
    made_under = sa.Column(
        "revision",
        sa.Integer(),
        server_default="1",
        nullable=False,
        comment="of the study, under which its parameters were suggested",
    )
    op.add_column("trial", made_under, schema=SCHEMA)
    removed_in = sa.Column(
        "removed_in", sa.Integer(), comment="the revision that took it from the grid"
    )
    op.add_column("cell", removed_in, schema=SCHEMA)
    op.create_check_constraint(
        "cell_removed", "cell", "removed_in IS NULL OR state = 'CLOSED'", schema=SCHEMA
    )
    # Roles that may launch studies may extend them, and whoever reads them reads their revisions.
    op.execute(
        f"""
        DO $$
        DECLARE who text;
        BEGIN
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND table_name = 'study'
                    AND privilege_type = 'INSERT'
                    AND grantee NOT IN (current_user, 'PUBLIC')
            LOOP
                EXECUTE format('GRANT INSERT ON {SCHEMA}.revision TO %I', who);
                EXECUTE format('GRANT UPDATE (ordinal, values, removed_in) ON {SCHEMA}.cell TO %I',
                    who);
                EXECUTE format('GRANT UPDATE (distribution_json) ON trial_params TO %I', who);
                EXECUTE format('GRANT UPDATE (value_json) ON study_user_attributes TO %I', who);
            END LOOP;
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND table_name = 'study'
                    AND privilege_type = 'SELECT'
                    AND grantee NOT IN (current_user, 'PUBLIC')
            LOOP
                EXECUTE format('GRANT SELECT ON {SCHEMA}.revision TO %I', who);
            END LOOP;
        END $$
        """
    )
