"""The first schema: studies, cells, tickets, trials, attempts, workers, slots, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SEQUENCE orchestrator.token_seq AS bigint")
    op.create_table(
        "study",
        sa.Column(
            "study_id",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Optuna's studies.study_id",
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False, comment="StudySpec.to_json()"),
        sa.Column("spec_hash", sa.Text(), nullable=False),
        sa.Column(
            "state", sa.Text(), server_default="ACTIVE", nullable=False, comment="ACTIVE | FINISHED"
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it is FINISHED"),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "news",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="last trial.seq handed out",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "launched_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('ACTIVE', 'FINISHED')", name="study_state"),
        sa.PrimaryKeyConstraint("study_id"),
        schema="orchestrator",
    )
    op.create_table(
        "worker",
        sa.Column("worker_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False, comment="host name, for people"),
        sa.Column(
            "process_scope",
            sa.Text(),
            nullable=False,
            comment="boot and PID namespace in which pid is meant",
        ),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column(
            "pid_started",
            sa.BigInteger(),
            nullable=False,
            comment="ticks since boot, so that a reused pid is told apart",
        ),
        sa.Column("ttl_s", sa.Double(), nullable=False),
        sa.Column(
            "state", sa.Text(), server_default="ACTIVE", nullable=False, comment="ACTIVE | GONE"
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it is GONE"),
        sa.Column(
            "doing",
            sa.Text(),
            server_default="starting",
            nullable=False,
            comment="what it does, for people",
        ),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('ACTIVE', 'GONE')", name="worker_state"),
        sa.PrimaryKeyConstraint("worker_id"),
        schema="orchestrator",
    )
    op.create_index(
        "worker_by_lease",
        "worker",
        ["lease_until"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'ACTIVE'"),
    )
    op.create_table(
        "cell",
        sa.Column("cell_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False, comment="true value by axis path"),
        sa.Column(
            "state", sa.Text(), server_default="OPEN", nullable=False, comment="OPEN | CLOSED"
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it is CLOSED"),
        sa.Column(
            "bound",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="tickets that name this cell",
        ),
        sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("pruned", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures_in_a_row", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('OPEN', 'CLOSED')", name="cell_state"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cell_id"),
        sa.UniqueConstraint("study_id", "ordinal", name="cell_ordinal"),
        schema="orchestrator",
    )
    op.create_index(
        "cell_by_bound",
        "cell",
        ["study_id", "bound", "ordinal"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'OPEN'"),
    )
    op.create_table(
        "event",
        sa.Column("event_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("trial_id", sa.BigInteger(), nullable=True),
        sa.Column("cell_id", sa.BigInteger(), nullable=True),
        sa.Column("worker_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event_id"),
        schema="orchestrator",
    )
    op.create_index(
        "event_by_study", "event", ["study_id", "event_id"], unique=False, schema="orchestrator"
    )
    op.create_table(
        "slot",
        sa.Column("scope", sa.Text(), nullable=False, comment="who shares the device: the host"),
        sa.Column("device", sa.Text(), nullable=False, comment="GPU UUID, or cpu"),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.BigInteger(), nullable=False),
        sa.Column("device_name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["orchestrator.worker.worker_id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("scope", "device", "slot"),
        sa.UniqueConstraint("worker_id", name="slot_one_a_worker"),
        schema="orchestrator",
    )
    op.create_table(
        "ticket",
        sa.Column("ticket_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column(
            "ordinal",
            sa.Integer(),
            nullable=False,
            comment="place in the claim order; part of the trial's seed",
        ),
        sa.Column(
            "cell_id",
            sa.BigInteger(),
            nullable=True,
            comment="null: allocation binds it when claimed",
        ),
        sa.Column(
            "share",
            sa.Integer(),
            nullable=True,
            comment="k-th guaranteed trial of its cell; null: not part of a guarantee",
        ),
        sa.Column(
            "state",
            sa.Text(),
            server_default="OPEN",
            nullable=False,
            comment="OPEN | LIVE | SPENT | VOID",
        ),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('OPEN', 'LIVE', 'SPENT', 'VOID')", name="ticket_state"),
        sa.CheckConstraint("share IS NULL OR cell_id IS NOT NULL", name="ticket_share_has_cell"),
        sa.ForeignKeyConstraint(["cell_id"], ["orchestrator.cell.cell_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ticket_id"),
        sa.UniqueConstraint("cell_id", "share", name="ticket_share"),
        sa.UniqueConstraint("study_id", "ordinal", name="ticket_ordinal"),
        schema="orchestrator",
    )
    op.create_index(
        "ticket_rest_open",
        "ticket",
        ["study_id", "ordinal"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'OPEN' AND share IS NULL"),
    )
    op.create_index(
        "ticket_share_open",
        "ticket",
        ["study_id", "ordinal"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'OPEN' AND share IS NOT NULL"),
    )
    op.create_index(
        "ticket_share_unspent",
        "ticket",
        ["study_id"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("share IS NOT NULL AND state IN ('OPEN', 'LIVE')"),
    )
    op.create_index(
        "ticket_unspent",
        "ticket",
        ["study_id", "state"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state IN ('OPEN', 'LIVE')"),
    )
    op.create_table(
        "trial",
        sa.Column("trial_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("ticket_id", sa.BigInteger(), nullable=False),
        sa.Column("cell_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "state",
            sa.Text(),
            server_default="CLAIMED",
            nullable=False,
            comment="CLAIMED | RUNNING | COMPLETE | PRUNED | FAIL",
        ),
        sa.Column(
            "holds_ticket",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="false once the ticket was reopened",
        ),
        sa.Column("number", sa.Integer(), nullable=True, comment="Optuna's trial number"),
        sa.Column("optuna_trial_id", sa.Integer(), nullable=True),
        sa.Column(
            "seq",
            sa.BigInteger(),
            nullable=True,
            comment="position in the study's news, grows with each change readers must see",
        ),
        sa.Column("values", sa.JSON(), nullable=True, comment="true value by parameter path"),
        sa.Column("worker_id", sa.BigInteger(), nullable=True, comment="null: nobody runs it"),
        sa.Column(
            "token",
            sa.BigInteger(),
            nullable=False,
            comment="of the last lease; kept when it lapses, replaced by the next claim",
        ),
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
        sa.Column("failure", sa.Text(), nullable=True, comment="why it is FAIL"),
        sa.Column(
            "claimed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state = 'CLAIMED' OR (number IS NOT NULL AND optuna_trial_id IS NOT NULL)",
            name="trial_has_number",
        ),
        sa.CheckConstraint(
            "state IN ('CLAIMED', 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL')", name="trial_state"
        ),
        sa.ForeignKeyConstraint(["cell_id"], ["orchestrator.cell.cell_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["orchestrator.study.study_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["ticket_id"], ["orchestrator.ticket.ticket_id"], ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"],
            ["orchestrator.worker.worker_id"],
        ),
        sa.PrimaryKeyConstraint("trial_id"),
        sa.UniqueConstraint("optuna_trial_id", name="trial_optuna"),
        sa.UniqueConstraint("study_id", "number", name="trial_number"),
        schema="orchestrator",
    )
    op.create_index(
        "trial_by_worker",
        "trial",
        ["worker_id"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state IN ('CLAIMED', 'RUNNING')"),
    )
    op.create_index(
        "trial_live",
        "trial",
        ["study_id", "trial_id"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state IN ('CLAIMED', 'RUNNING')"),
    )
    op.create_index("trial_news", "trial", ["study_id", "seq"], unique=False, schema="orchestrator")
    op.create_index(
        "trial_one_a_ticket",
        "trial",
        ["ticket_id"],
        unique=True,
        schema="orchestrator",
        postgresql_where=sa.text("holds_ticket"),
    )
    op.create_table(
        "attempt",
        sa.Column("trial_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.BigInteger(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column(
            "runs_dir",
            sa.Text(),
            nullable=False,
            comment="root of the run directories on that host",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=True,
            comment="completed | pruned | failed | interrupted | lost",
        ),
        sa.ForeignKeyConstraint(["trial_id"], ["orchestrator.trial.trial_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["worker_id"],
            ["orchestrator.worker.worker_id"],
        ),
        sa.PrimaryKeyConstraint("trial_id", "attempt"),
        schema="orchestrator",
    )
