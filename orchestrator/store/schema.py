"""Our tables.

The unique indexes are the promises: one row per (cell, share), at most one trial that holds a
ticket, distinct numbers. No foreign key leads from ours into Optuna's tables, so that a dashboard
may delete a study without asking us.

Every statement has the same alias for a table: s study, v revision, l cell, t ticket, o trial, a
attempt, w worker, d slot, h shortage, r probe, k chain, g stage, e event, i prior; of
Optuna's, p studies and q trials.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.store.states import LIVE, SCHEMA

metadata = sa.MetaData(schema=SCHEMA)
_now = sa.text("clock_timestamp()")

study = sa.Table(
    "study",
    metadata,
    sa.Column(
        "study_id",
        sa.Integer,
        primary_key=True,
        autoincrement=False,
        comment="Optuna's studies.study_id",
    ),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column(
        "revision",
        sa.Integer,
        nullable=False,
        server_default="1",
        comment="counts its launches",
    ),
    sa.Column("spec", sa.JSON, nullable=False, comment="StudySpec.to_json()"),
    sa.Column("spec_hash", sa.Text, nullable=False),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        server_default="ACTIVE",
        comment="ACTIVE | PAUSED | STOPPING | FINISHED",
    ),
    sa.Column("reason", sa.Text, comment="why it is not ACTIVE"),
    sa.Column(
        "halt",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="give running trials back at once",
    ),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "news",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="last trial.seq handed out",
    ),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("launched_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("deadline_at", sa.DateTime(timezone=True)),
    sa.Column(
        "followed_until",
        sa.DateTime(timezone=True),
        comment="a launch follows it, and will have said so again by then",
    ),
    sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'STOPPING', 'FINISHED')", name="study_state"),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False, comment="from 1"),
    sa.Column("spec", sa.JSON, nullable=False, comment="StudySpec.to_json(), as it began"),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("changes", sa.JSON, nullable=False, comment="in words, a list; empty for the first"),
)
"""What a study has been: its identity changes from one revision to the next."""

chain = sa.Table(
    "chain",
    metadata,
    sa.Column("chain_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column(
        "stages",
        sa.JSON,
        nullable=False,
        comment="every stage as it was last declared, see stages.Stage.to_json",
    ),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        server_default="ACTIVE",
        comment="ACTIVE | PAUSED: its next stage begins paused | STOPPED: none begins",
    ),
    sa.Column("reason", sa.Text, comment="why it is not ACTIVE"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("launched_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("deadline_at", sa.DateTime(timezone=True), comment="of all stages together"),
    sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'STOPPED')", name="chain_state"),
    sa.UniqueConstraint("name", name="chain_name"),
)
"""Studies that follow each other. Its name is none that a study has."""

stage = sa.Table(
    "stage",
    metadata,
    sa.Column("chain_id", sa.ForeignKey(chain.c.chain_id, ondelete="CASCADE"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, comment="place in the chain, from 0"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column(
        "inherited",
        sa.JSON,
        nullable=False,
        comment="what it has of earlier stages, see stages.Inherited.to_json",
    ),
    sa.Column("began_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column(
        "settled_at",
        sa.DateTime(timezone=True),
        comment="when a launch found it at its end and said how it stands",
    ),
    sa.UniqueConstraint("study_id", name="stage_study"),
)
"""A stage that has begun: written with its study, in one transaction."""

cell = sa.Table(
    "cell",
    metadata,
    sa.Column("cell_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("values", sa.JSON, nullable=False, comment="true value by axis path"),
    sa.Column("state", sa.Text, nullable=False, server_default="OPEN", comment="OPEN | CLOSED"),
    sa.Column("reason", sa.Text, comment="why it is CLOSED"),
    sa.Column(
        "bound",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="tickets that name this cell",
    ),
    sa.Column("completed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("pruned", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failures_in_a_row", sa.Integer, nullable=False, server_default="0"),
    sa.Column("removed_in", sa.Integer, comment="the revision that took it from the grid"),
    sa.CheckConstraint("state IN ('OPEN', 'CLOSED')", name="cell_state"),
    sa.CheckConstraint("removed_in IS NULL OR state = 'CLOSED'", name="cell_removed"),
    sa.UniqueConstraint("study_id", "ordinal", name="cell_ordinal"),
    sa.Index(
        "cell_by_bound", "study_id", "bound", "ordinal", postgresql_where=sa.text("state = 'OPEN'")
    ),
)

ticket = sa.Table(
    "ticket",
    metadata,
    sa.Column("ticket_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column(
        "ordinal",
        sa.Integer,
        nullable=False,
        comment="place in the claim order; part of the trial's seed",
    ),
    sa.Column(
        "cell_id",
        sa.ForeignKey(cell.c.cell_id, ondelete="CASCADE"),
        comment="null: allocation binds it when claimed",
    ),
    sa.Column(
        "share",
        sa.Integer,
        comment="k-th guaranteed trial of its cell; null: not part of a guarantee",
    ),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        server_default="OPEN",
        comment="OPEN | LIVE | SPENT | VOID",
    ),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "extra",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="by hand, on top of budget.trials",
    ),
    sa.Column(
        "fixed",
        sa.JSON(none_as_null=True),
        comment="true value by path of what its next trial does not ask for",
    ),
    sa.Column(
        "retried_from", sa.Integer, comment="number of the failed trial that its next one repeats"
    ),
    sa.Column(
        "confirms",
        sa.Integer,
        comment="number of the trial whose parameters it repeats with another seed",
    ),
    sa.Column(
        "copied_from",
        sa.JSON(none_as_null=True),
        comment="study and trial of another study that `fixed` was copied from at the launch",
    ),
    sa.CheckConstraint("state IN ('OPEN', 'LIVE', 'SPENT', 'VOID')", name="ticket_state"),
    sa.CheckConstraint("share IS NULL OR cell_id IS NOT NULL", name="ticket_share_has_cell"),
    sa.CheckConstraint(
        "NOT extra OR (share IS NULL AND cell_id IS NOT NULL)", name="ticket_extra_has_cell"
    ),
    sa.CheckConstraint(
        "confirms IS NULL OR (share IS NULL AND NOT extra)",
        name="ticket_confirms",
    ),
    sa.UniqueConstraint("study_id", "ordinal", name="ticket_ordinal"),
    sa.UniqueConstraint("cell_id", "share", name="ticket_share"),
    sa.Index(
        "ticket_share_open",
        "study_id",
        "ordinal",
        postgresql_where=sa.text("state = 'OPEN' AND share IS NOT NULL"),
    ),
    sa.Index(
        "ticket_rest_open",
        "study_id",
        "ordinal",
        postgresql_where=sa.text("state = 'OPEN' AND share IS NULL AND NOT extra"),
    ),
    sa.Index(
        "ticket_extra_open",
        "study_id",
        "ordinal",
        postgresql_where=sa.text("state = 'OPEN' AND extra"),
    ),
    sa.Index(
        "ticket_share_unspent",
        "study_id",
        postgresql_where=sa.text("share IS NOT NULL AND state IN ('OPEN', 'LIVE')"),
    ),
    sa.Index("ticket_confirming", "study_id", postgresql_where=sa.text("confirms IS NOT NULL")),
    sa.Index(
        "ticket_unspent", "study_id", "state", postgresql_where=sa.text("state IN ('OPEN', 'LIVE')")
    ),
)

worker = sa.Table(
    "worker",
    metadata,
    sa.Column("worker_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("host", sa.Text, nullable=False, comment="host name, for people"),
    sa.Column(
        "process_scope",
        sa.Text,
        nullable=False,
        comment="boot and PID namespace in which pid is meant",
    ),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column(
        "pid_started",
        sa.BigInteger,
        nullable=False,
        comment="ticks since boot, so that a reused pid is told apart",
    ),
    sa.Column("ttl_s", sa.Double, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="ACTIVE", comment="ACTIVE | GONE"),
    sa.Column("reason", sa.Text, comment="why it is GONE"),
    sa.Column(
        "doing",
        sa.Text,
        nullable=False,
        server_default="starting",
        comment="what it does, for people",
    ),
    sa.Column(
        "checkpoints",
        sa.Text,
        comment="the place where it keeps checkpoints; the same for all that share it",
    ),
    sa.Column(
        "studies",
        sa.JSON(none_as_null=True),
        comment="names of the only studies it serves; null: all",
    ),
    sa.Column(
        "refusals",
        JSONB(none_as_null=True),
        comment="by study_id: a revision that it cannot serve, and why",
    ),
    sa.Column(
        "holds",
        sa.ARRAY(sa.BigInteger),
        comment="tokens of the trials that it says it holds; null: not said",
    ),
    sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("state IN ('ACTIVE', 'GONE')", name="worker_state"),
    # Not by lease_until: a renewal then changes no index, so that thousands of workers leave few
    # dead rows.
    sa.Index("worker_active", "process_scope", postgresql_where=sa.text("state = 'ACTIVE'")),
)

slot = sa.Table(
    "slot",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True, comment="who shares the device: the host"),
    sa.Column("device", sa.Text, primary_key=True, comment="GPU UUID, or cpu"),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("worker_id", sa.ForeignKey(worker.c.worker_id, ondelete="CASCADE"), nullable=False),
    sa.Column("device_name", sa.Text, nullable=False),
    sa.Column(
        "gpu_bytes",
        sa.BigInteger,
        comment="its share of the GPU's memory, 0: not known; null: the CPU",
    ),
    sa.Column(
        "host_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="RAM of its host, 0: not known",
    ),
    sa.UniqueConstraint("worker_id", name="slot_one_a_worker"),
)
"""A held device slot. Its lease is its worker's: renewed with it, freed when the worker deregisters
or is evicted.
"""

_LIVE = f"state IN {LIVE}"

trial = sa.Table(
    "trial",
    metadata,
    sa.Column("trial_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column("ticket_id", sa.ForeignKey(ticket.c.ticket_id, ondelete="CASCADE"), nullable=False),
    sa.Column("cell_id", sa.ForeignKey(cell.c.cell_id, ondelete="CASCADE"), nullable=False),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        server_default="CLAIMED",
        comment="CLAIMED | PREPARED | RUNNING | COMPLETE | PRUNED | FAIL",
    ),
    sa.Column(
        "holds_ticket",
        sa.Boolean,
        nullable=False,
        server_default=sa.true(),
        comment="false once the ticket was reopened",
    ),
    sa.Column("number", sa.Integer, comment="Optuna's trial number"),
    sa.Column("optuna_trial_id", sa.Integer),
    sa.Column(
        "seq",
        sa.BigInteger,
        comment="position in the study's news, grows with each change readers must see",
    ),
    sa.Column("created_seq", sa.BigInteger, comment="its first position in the news"),
    sa.Column("values", sa.JSON, comment="true value by parameter path"),
    sa.Column("worker_id", sa.ForeignKey(worker.c.worker_id), comment="null: nobody runs it"),
    sa.Column(
        "token",
        sa.BigInteger,
        nullable=False,
        comment="of the last lease; kept when it lapses, replaced by the next claim",
    ),
    sa.Column(
        "attempts",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="times a child was started",
    ),
    sa.Column(
        "lost",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="attempts whose worker fell silent",
    ),
    sa.Column(
        "retries",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="attempts that failed and were run again",
    ),
    sa.Column(
        "retried_from", sa.Integer, comment="number of the failed trial that this one repeats"
    ),
    sa.Column("failure", sa.Text, comment="why it is FAIL"),
    sa.Column(
        "revision",
        sa.Integer,
        nullable=False,
        server_default="1",
        comment="of the study, under which its parameters were suggested",
    ),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(
        "state IN ('CLAIMED', 'PREPARED', 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL')",
        name="trial_state",
    ),
    sa.CheckConstraint("state <> 'PREPARED' OR attempts = 0", name="trial_prepared"),
    sa.CheckConstraint(
        "state = 'CLAIMED' OR (number IS NOT NULL AND optuna_trial_id IS NOT NULL)",
        name="trial_has_number",
    ),
    sa.UniqueConstraint("study_id", "number", name="trial_number"),
    sa.UniqueConstraint("optuna_trial_id", name="trial_optuna"),
    sa.Index(
        "trial_one_a_ticket", "ticket_id", unique=True, postgresql_where=sa.text("holds_ticket")
    ),
    sa.Index("trial_by_ticket", "ticket_id"),
    sa.Index("trial_by_cell", "cell_id"),
    sa.Index("trial_news", "study_id", "seq"),
    sa.Index("trial_created", "study_id", "created_seq"),
    sa.Index("trial_live", "study_id", "trial_id", postgresql_where=sa.text(_LIVE)),
    sa.Index("trial_by_worker", "worker_id", postgresql_where=sa.text(_LIVE)),
)

attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("trial_id", sa.ForeignKey(trial.c.trial_id, ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("worker_id", sa.ForeignKey(worker.c.worker_id), nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column(
        "runs_dir", sa.Text, nullable=False, comment="root of the run directories on that host"
    ),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column(
        "outcome", sa.Text, comment="completed | pruned | failed | interrupted | lost | retried"
    ),
    sa.Column("reason", sa.Text, comment="why it was interrupted, lost or retried"),
    sa.Column("device_name", sa.Text, comment="of the slot it ran on, as are the next two"),
    sa.Column("gpu_bytes", sa.BigInteger),
    sa.Column("host_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column(
        "peak_bytes", sa.BigInteger, comment="most memory that it held, of one that ran out of it"
    ),
    sa.Column(
        "facts",
        JSONB(none_as_null=True),
        comment="the code, machine and device it ran on, and what it took",
    ),
    sa.Column(
        "token",
        sa.BigInteger,
        comment="of the claim under which it began; null: older than this column",
    ),
)

shortage = sa.Table(
    "shortage",
    metadata,
    sa.Column("cell_id", sa.ForeignKey(cell.c.cell_id, ondelete="CASCADE"), primary_key=True),
    sa.Column(
        "memory",
        sa.Text,
        primary_key=True,
        comment="gpu | cpu: RAM, on the CPU | host: RAM, on a GPU",
    ),
    sa.Column("device_name", sa.Text, primary_key=True),
    sa.Column(
        "bytes",
        sa.BigInteger,
        primary_key=True,
        comment="how much there is of that memory, 0: not known",
    ),
    sa.Column(
        "in_a_row",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="trials of the cell that ran out of it",
    ),
    sa.Column(
        "closed",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="no such device gets a trial of the cell",
    ),
    sa.Column("reason", sa.Text, comment="why it is closed"),
    sa.Column("trial_id", sa.BigInteger, comment="the trial that closed it"),
    sa.Column("probe_id", sa.BigInteger, comment="or the probe that did"),
    sa.Column("closed_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("memory IN ('gpu', 'cpu', 'host')", name="shortage_memory"),
    sa.CheckConstraint("closed = (reason IS NOT NULL)", name="shortage_has_reason"),
)
"""A cell that ran out of memory on a device type, which is the name of the device and how much
memory it has.
"""

probe = sa.Table(
    "probe",
    metadata,
    sa.Column("probe_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column("cell_id", sa.ForeignKey(cell.c.cell_id, ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("device_name", sa.Text, nullable=False, comment="of the slot it was measured on"),
    sa.Column(
        "bytes",
        sa.BigInteger,
        nullable=False,
        comment="how much memory that device type has, a GPU's or the host's; 0: not known",
    ),
    sa.Column(
        "key", sa.Text, nullable=False, comment="of the declaration and the code, see probe_key"
    ),
    sa.Column(
        "state",
        sa.Text,
        nullable=False,
        comment="OPEN: to be measured again | RUNNING | DONE | FAILED",
    ),
    sa.Column("worker_id", sa.ForeignKey(worker.c.worker_id), comment="of the last attempt"),
    sa.Column("token", sa.BigInteger, nullable=False, comment="of the last attempt"),
    sa.Column(
        "attempts",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="times a child was started",
    ),
    sa.Column(
        "lost",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="attempts whose worker fell silent",
    ),
    sa.Column(
        "retries",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="attempts that failed and were run again",
    ),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column(
        "runs_dir", sa.Text, nullable=False, comment="root of the run directories on that host"
    ),
    sa.Column(
        "measurement",
        sa.JSON(none_as_null=True),
        comment="what it found, see measurement.Measurement",
    ),
    sa.Column("reason", sa.Text, comment="why it FAILED, or was given back"),
    sa.Column("seconds", sa.Double, comment="how long the last attempt ran"),
    sa.Column("facts", JSONB(none_as_null=True), comment="the code, machine and device it ran on"),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("state IN ('OPEN', 'RUNNING', 'DONE', 'FAILED')", name="probe_state"),
    sa.CheckConstraint("state <> 'DONE' OR measurement IS NOT NULL", name="probe_has_measurement"),
    sa.CheckConstraint("state <> 'FAILED' OR reason IS NOT NULL", name="probe_has_reason"),
    sa.UniqueConstraint("cell_id", "name", "device_name", "bytes", "key", name="probe_once"),
    sa.Index("probe_by_study", "study_id"),
    sa.Index("probe_running", "cell_id", postgresql_where=sa.text("state = 'RUNNING'")),
)
"""What a probe found in a cell on a device type, or is about to find. Its lease is its worker's: it
is held while it is RUNNING and its worker ACTIVE.
"""

prior = sa.Table(
    "prior",
    metadata,
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    sa.Column("source", sa.Text, nullable=False, comment="name of the study it was copied from"),
    sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("prior", sa.JSON, nullable=False, comment="Prior.to_json()"),
    sa.PrimaryKeyConstraint("study_id", "source"),
)
"""What a study learns from another one: its trials as they were at the launch. Never changed, so
that every worker and `replay` read the same.
"""

event = sa.Table(
    "event",
    metadata,
    sa.Column("event_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("study_id", sa.ForeignKey(study.c.study_id, ondelete="CASCADE")),
    sa.Column("trial_id", sa.BigInteger),
    sa.Column("cell_id", sa.BigInteger),
    sa.Column("worker_id", sa.BigInteger),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Index("event_by_study", "study_id", "event_id"),
)
