"""Chains of studies: their stages, and what each stage inherited."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SCHEMA = "orchestrator"
_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "chain",
        sa.Column("chain_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "stages",
            sa.JSON(),
            nullable=False,
            comment="every stage as it was last declared, see stages.Stage.to_json",
        ),
        sa.Column(
            "state",
            sa.Text(),
            server_default="ACTIVE",
            nullable=False,
            comment="ACTIVE | PAUSED: its next stage begins paused | STOPPED: none begins",
        ),
        sa.Column("reason", sa.Text(), comment="why it is not ACTIVE"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("launched_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), comment="of all stages together"),
        sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'STOPPED')", name="chain_state"),
        sa.PrimaryKeyConstraint("chain_id"),
        sa.UniqueConstraint("name", name="chain_name"),
        schema=SCHEMA,
    )
    op.create_table(
        "stage",
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="place in the chain, from 0"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column(
            "inherited",
            sa.JSON(),
            nullable=False,
            comment="what it has of earlier stages, see stages.Inherited.to_json",
        ),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column(
            "settled_at",
            sa.DateTime(timezone=True),
            comment="when a launch found it at its end and said how it stands",
        ),
        sa.ForeignKeyConstraint(["chain_id"], ["orchestrator.chain.chain_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain_id", "ordinal"),
        sa.UniqueConstraint("study_id", name="stage_study"),
        schema=SCHEMA,
    )
    # Roles that may launch studies launch chains, and who reads studies reads them.
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
                EXECUTE format('GRANT INSERT, UPDATE ON {SCHEMA}.chain, {SCHEMA}.stage TO %I', who);
            END LOOP;
            FOR who IN
                SELECT DISTINCT grantee FROM information_schema.role_table_grants
                WHERE table_schema = '{SCHEMA}' AND table_name = 'study'
                    AND privilege_type = 'SELECT'
                    AND grantee NOT IN (current_user, 'PUBLIC')
            LOOP
                EXECUTE format('GRANT SELECT ON {SCHEMA}.chain, {SCHEMA}.stage TO %I', who);
            END LOOP;
        END $$
        """
    )
