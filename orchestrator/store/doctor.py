"""Whether a database keeps the promises of the ledger: one statement an invariant, each a question
that nothing answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store.connection.database import Database
from orchestrator.store.schema import LIVE


@dataclass(frozen=True)
class Finding:
    """A broken invariant, or a note: something to know that is nobody's fault.

    `study` is None for what concerns the whole fleet; `kind` a key of `INVARIANTS` or `NOTES`;
    `message` names the rows by number.
    """

    study: str | None
    kind: str
    message: str


@dataclass(frozen=True)
class Examination:
    """What was looked at, and what was found."""

    studies: int
    trials: int
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]


class Doctor:
    """Looks for broken invariants; writes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def older_optuna(self) -> str | None:
        """What to know of a storage that an Optuna before 5 made, None of any other."""
        with self._database.transaction() as c:
            told: str | None = c.execute(
                sa.text(f"SELECT message FROM ({NOTES['older Optuna']}) AS f(study, message)")
            ).scalar()
        return told

    def examine(self, study: str | None = None) -> Examination:
        """Checks one study and the fleet, or all studies. All statements see one moment, so work
        under way is no finding.
        """
        with self._database.transaction(statement_s=300) as c:
            c.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return look(c, study)


def look(c: Connection, study: str | None) -> Examination:
    """What `Doctor.examine` finds, as the transaction of `c` sees the database."""
    studies, trials = c.execute(sa.text(f"{_OURS} {_COUNT}"), {"study": study}).one()
    findings, notes = (
        tuple(
            Finding(row.study, kind, row.message)
            for kind, query in queries.items()
            for row in c.execute(
                sa.text(f"{_OURS} SELECT * FROM ({query}) AS f(study, message) ORDER BY 1, 2"),
                {"study": study},
            )
        )
        for queries in (INVARIANTS, NOTES)
    )
    return Examination(studies, trials, findings, notes)


# Trials of others in our studies are observations: none of ours, so none of these. A study deleted
# elsewhere is a note only.
_OURS = f"""
WITH ours AS (
    SELECT s.*, s.name AS study,
        CAST(s.spec #>> '{{budget,trials}}' AS int) AS budget_trials,
            CAST(s.spec #>> '{{budget,per_cell}}' AS int) AS per_cell
    FROM orchestrator.study s JOIN studies o ON o.study_id = s.study_id
    WHERE CAST(:study AS text) IS NULL OR :study IN (s.name, o.study_name)
), cells AS (
    SELECT c.*, s.study FROM orchestrator.cell c JOIN ours s ON s.study_id = c.study_id
), tickets AS (
    SELECT k.*, s.study FROM orchestrator.ticket k JOIN ours s ON s.study_id = k.study_id
), ledger AS (
    SELECT t.*, s.study, s.news, s.state AS study_state, s.launched_at,
        CASE WHEN t.number IS NULL THEN 'claim ' || t.trial_id ELSE 'trial ' || t.number END AS who,
        t.state IN {LIVE} AS live, CASE t.state WHEN 'PREPARED' THEN 'RUNNING'
            ELSE t.state END AS optuna_state,
        t.state IN ('COMPLETE', 'PRUNED') AND t.holds_ticket AS accepted
    FROM orchestrator.trial t JOIN ours s ON s.study_id = t.study_id
)"""

_COUNT = (
    "SELECT (SELECT count(*) FROM ours), (SELECT count(*) FROM ledger WHERE state <> 'CLAIMED')"
)

_IN_OPTUNA = {
    "no Optuna trial": """
        SELECT t.study, format('%s is %s, but Optuna has no trial of id %s', t.who, t.state,
            t.optuna_trial_id)
        FROM ledger t
        WHERE t.state <> 'CLAIMED' AND NOT EXISTS (SELECT FROM trials o
            WHERE o.trial_id = t.optuna_trial_id)""",
    "state differs": """
        SELECT t.study, format('%s is %s, but %s in Optuna', t.who, t.state, o.state)
        FROM ledger t JOIN trials o ON o.trial_id = t.optuna_trial_id
        WHERE CAST(o.state AS text) <> t.optuna_state""",
    "number differs": """
        SELECT t.study, format('%s has the number %s in study %s of Optuna', t.who, o.number,
            o.study_id)
        FROM ledger t JOIN trials o ON o.trial_id = t.optuna_trial_id
        WHERE (o.number, o.study_id) IS DISTINCT FROM (t.number, t.study_id)""",
    "values differ": """
        SELECT t.study, format('%s is %s and has %s values in Optuna, not %s', t.who, t.state, v.n,
            w.n)
        FROM ledger t JOIN trials o ON o.trial_id = t.optuna_trial_id
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM trial_values v
            WHERE v.trial_id = t.optuna_trial_id) AS v
        CROSS JOIN LATERAL (
            SELECT count(*) AS n FROM study_directions d WHERE d.study_id = t.study_id
                AND t.state = 'COMPLETE'
        ) AS w
        WHERE v.n <> w.n""",
    "parameters differ": """
        SELECT t.study, format('%s has the parameters %s, but %s in Optuna', t.who,
            array_to_string(here.names, ', '),
                coalesce(nullif(array_to_string(there.names, ', '), ''), 'none'))
        FROM ledger t JOIN trials o ON o.trial_id = t.optuna_trial_id
        CROSS JOIN LATERAL (SELECT ARRAY(SELECT json_object_keys(t.values) ORDER BY 1) AS names) AS
            here
        CROSS JOIN LATERAL (
            SELECT ARRAY(
                SELECT CAST(p.param_name AS text) FROM trial_params p
                    WHERE p.trial_id = t.optuna_trial_id ORDER BY 1
            ) AS names
        ) AS there
        WHERE here.names <> there.names""",
    "times differ": """
        SELECT t.study, format('%s is %s, but in Optuna started at %s and ended at %s', t.who,
            t.state,
            coalesce(CAST(o.datetime_start AS text), 'no time'),
                coalesce(CAST(o.datetime_complete AS text), 'no time'))
        FROM ledger t JOIN trials o ON o.trial_id = t.optuna_trial_id
        WHERE o.datetime_start IS NULL OR (o.datetime_complete IS NULL) <> t.live""",
    "orphan": """
        SELECT s.study, format('trial %s of Optuna was made by a worker, but the ledger does not have it', o.number)
        FROM ours s JOIN trials o ON o.study_id = s.study_id
        WHERE EXISTS (SELECT FROM trial_system_attributes a WHERE a.trial_id = o.trial_id
            AND a.key LIKE 'orchestrator:%')
            AND NOT EXISTS (SELECT FROM orchestrator.trial t
                WHERE t.optuna_trial_id = o.trial_id)""",
    "numbers": """
        SELECT s.study, format('the numbers of its %s trials in Optuna are not 0 to %s, each once',
            count(*), count(*) - 1)
        FROM ours s JOIN trials o ON o.study_id = s.study_id
        GROUP BY s.study_id, s.study
        HAVING count(DISTINCT o.number) <> count(*) OR min(o.number) <> 0
            OR max(o.number) <> count(*) - 1""",
}

_TRIALS = {
    "claim": """
        SELECT t.study, format('%s has no Optuna trial yet, but %s', t.who,
            CASE WHEN t.worker_id IS NULL THEN 'no worker holds it'
                ELSE 'has a number, a place in the news or an attempt' END)
        FROM ledger t
        WHERE t.state = 'CLAIMED'
            AND (t.worker_id IS NULL OR t.attempts > 0
                OR num_nonnulls(t.number, t.optuna_trial_id, t.seq) > 0)""",
    "ended": """
        SELECT t.study, format('%s is %s, but %s', t.who, t.state, concat_ws(', ',
            CASE WHEN t.ended_at IS NULL THEN 'has not ended' ELSE 'has ended' END,
            'is held by worker ' || t.worker_id,
            CASE WHEN t.failure IS NULL THEN 'has no failure'
                ELSE 'has the failure: ' || t.failure END))
        FROM ledger t
        WHERE (t.ended_at IS NULL) <> t.live
            OR (t.worker_id IS NOT NULL AND NOT t.live)
            OR (t.failure IS NULL AND t.state = 'FAIL')
                OR (t.failure IS NOT NULL AND (t.live OR t.accepted))""",
    "attempts": """
        SELECT t.study, format('%s counts %s attempts, but those it has are: %s', t.who, t.attempts,
            coalesce(a.list, 'none'))
        FROM ledger t
        LEFT JOIN (
            SELECT a.trial_id, count(*) AS n, min(a.attempt) AS first, max(a.attempt) AS last,
                string_agg(CAST(a.attempt AS text), ', ' ORDER BY a.attempt) AS list
            FROM orchestrator.attempt a GROUP BY a.trial_id
        ) AS a ON a.trial_id = t.trial_id
        WHERE (coalesce(a.n, 0), coalesce(a.last, 0)) <> (t.attempts, t.attempts)
            OR a.first <> 1""",
    # Fewer than counted is right: a result that came late is how the attempt ended after all.
    "counts": """
        SELECT t.study, format('%s counts %s attempts lost and %s run again, but has %s and %s',
            t.who, t.lost, t.retries,
            count(*) FILTER (WHERE a.outcome = 'lost'),
                count(*) FILTER (WHERE a.outcome = 'retried'))
        FROM ledger t JOIN orchestrator.attempt a ON a.trial_id = t.trial_id
        GROUP BY t.study, t.who, t.lost, t.retries, t.trial_id
        HAVING t.lost < count(*) FILTER (WHERE a.outcome = 'lost')
            OR t.retries < count(*) FILTER (WHERE a.outcome = 'retried')""",
    "attempt open": """
        SELECT t.study, format('attempt %s of %s %s', a.attempt, t.who,
            CASE WHEN a.ended_at IS NULL THEN 'has not ended, but nobody runs it'
                ELSE 'has ended, but its worker runs on' END)
        FROM ledger t JOIN orchestrator.attempt a ON a.trial_id = t.trial_id
        WHERE num_nonnulls(a.ended_at, a.outcome) = 1
            OR (a.ended_at IS NULL) <> (t.live AND t.worker_id IS NOT NULL
                AND a.attempt = t.attempts)""",
    "news": """
        SELECT t.study, format('%s is at %s in the news, which ends at %s', t.who,
            coalesce(CAST(t.seq AS text), 'no place'),
            t.news)
        FROM ledger t WHERE t.state <> 'CLAIMED' AND (t.seq IS NULL OR t.seq > t.news)""",
    "news twice": """
        SELECT t.study, format('%s are all at %s in the news',
            string_agg(t.who, ', ' ORDER BY t.number), t.seq)
        FROM ledger t WHERE t.seq IS NOT NULL GROUP BY t.study_id, t.study, t.seq
            HAVING count(*) > 1""",
    "token twice": """
        SELECT min(t.study), format('%s have the same token %s',
            string_agg(t.who, ', ' ORDER BY t.trial_id), t.token)
        FROM ledger t GROUP BY t.token HAVING count(*) > 1""",
}

_TICKETS = {
    "ticket": """
        SELECT k.study, format('ticket %s is %s, but is held by %s', k.ordinal, k.state,
            coalesce(t.who || ', which is ' || t.state, 'nobody'))
        FROM tickets k LEFT JOIN ledger t ON t.ticket_id = k.ticket_id AND t.holds_ticket
        WHERE CASE k.state
            WHEN 'LIVE' THEN t.live IS NOT TRUE
            WHEN 'SPENT' THEN t.accepted IS NOT TRUE
            ELSE t.trial_id IS NOT NULL END""",
    "accepted twice": """
        SELECT k.study, format('ticket %s has several results: %s', k.ordinal,
            string_agg(t.who, ', ' ORDER BY t.number))
        FROM tickets k JOIN ledger t ON t.ticket_id = k.ticket_id
            AND (t.state = 'COMPLETE' OR t.accepted)
        GROUP BY k.ticket_id, k.study, k.ordinal HAVING count(*) > 1""",
    "holds": """
        SELECT t.study, format('%s is %s, but %s its ticket', t.who, t.state,
            CASE WHEN t.holds_ticket THEN 'holds' ELSE 'does not hold' END)
        FROM ledger t WHERE t.state <> 'PRUNED' AND t.holds_ticket = (t.state = 'FAIL')""",
    "cell of ticket": """
        SELECT t.study, format('%s runs in another cell than its ticket %s is bound to', t.who,
            k.ordinal)
        FROM ledger t JOIN tickets k ON k.ticket_id = t.ticket_id
        WHERE t.study_id <> k.study_id
            OR (t.holds_ticket AND k.cell_id IS DISTINCT FROM t.cell_id)""",
    # By when the last share was spent, not pair by pair: there may be 100,000 shares and as many
    # other tickets.
    "ahead of shares": """
        SELECT t.study, format('%s got ticket %s, no share of a cell, before the share %s was spent', t.who, k.ordinal, (
            SELECT min(share.ordinal)
            FROM tickets share LEFT JOIN ledger done ON done.ticket_id = share.ticket_id
                AND done.accepted
            WHERE share.study_id = k.study_id AND share.share IS NOT NULL
                AND share.state <> 'VOID' AND coalesce(done.ended_at, 'infinity') > t.claimed_at
        ))
        FROM tickets k
        JOIN ledger t ON t.ticket_id = k.ticket_id AND t.holds_ticket
        JOIN (
            SELECT share.study_id, max(coalesce(done.ended_at, 'infinity')) AS spent_at
            FROM tickets share LEFT JOIN ledger done ON done.ticket_id = share.ticket_id
                AND done.accepted
            WHERE share.share IS NOT NULL AND share.state <> 'VOID'
            GROUP BY share.study_id
        ) AS shares ON shares.study_id = k.study_id AND shares.spent_at > t.claimed_at
        WHERE k.share IS NULL AND NOT k.extra AND t.claimed_at > greatest(t.launched_at, (
                SELECT max(e.at) FROM orchestrator.event e WHERE e.study_id = k.study_id
                    AND e.kind = 'cell opened again'
            ))
            AND NOT EXISTS (SELECT FROM orchestrator.event e WHERE e.trial_id = t.trial_id
                AND e.kind = 'share waits')""",
    "over budget": """
        SELECT s.study, format('%s tickets count for a budget of %s trials', count(*),
            s.budget_trials)
        FROM ours s
        JOIN tickets k ON k.study_id = s.study_id AND k.state <> 'VOID' AND NOT k.extra
        CROSS JOIN LATERAL (
            SELECT EXISTS (
                SELECT FROM orchestrator.trial t WHERE t.ticket_id = k.ticket_id
                    AND t.claimed_at < s.launched_at
            ) AS before_launch
        ) AS used
        GROUP BY s.study_id, s.study, s.budget_trials
        HAVING count(*) > greatest(s.budget_trials, count(*) FILTER (WHERE used.before_launch))""",
}

_CELLS = {
    # An older version counted a trial that pruned itself before its cell had a complete one as
    # failed, and said so of it.
    "tally": """
        SELECT c.study, format('cell %s counts %s complete, %s pruned, %s failed, but has %s, %s and %s', c.ordinal,
            c.completed, c.pruned, c.failed, n.completed, n.pruned, n.failed)
        FROM cells c
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE t.state = 'COMPLETE') AS completed,
                count(*) FILTER (WHERE t.state = 'PRUNED' AND t.holds_ticket) AS pruned,
                count(*) FILTER (
                    WHERE NOT t.holds_ticket AND (a.outcome = 'failed'
                        OR (a.outcome = 'pruned' AND t.failure IS NOT NULL))
                ) AS failed
            FROM orchestrator.trial t
            LEFT JOIN orchestrator.attempt a ON a.trial_id = t.trial_id AND a.attempt = t.attempts
            WHERE t.cell_id = c.cell_id
        ) AS n
        WHERE (c.completed, c.pruned, c.failed) <> (n.completed, n.pruned, n.failed)""",
    "bound": """
        SELECT c.study, format('cell %s counts %s tickets, but has %s', c.ordinal, c.bound,
            count(k.ticket_id))
        FROM cells c LEFT JOIN tickets k ON k.cell_id = c.cell_id AND k.state <> 'VOID'
            AND NOT k.extra
        GROUP BY c.cell_id, c.study, c.ordinal, c.bound HAVING c.bound <> count(k.ticket_id)""",
    "left in a closed cell": """
        SELECT c.study, format('ticket %s is open, but its cell %s is closed', k.ordinal, c.ordinal)
        FROM cells c JOIN tickets k ON k.cell_id = c.cell_id
        WHERE c.state = 'CLOSED' AND k.state = 'OPEN' AND NOT k.extra""",
    # A cell that was closed, its tickets given to others, and then opened again may have to wait
    # for a launch with more trials.
    "short of its share": """
        SELECT c.study, format('the budget is spent, but cell %s has %s of its %s trials, %s of them complete', c.ordinal,
            count(k.ticket_id), s.per_cell, c.completed)
        FROM ours s JOIN cells c ON c.study_id = s.study_id AND c.state = 'OPEN'
        LEFT JOIN tickets k ON k.cell_id = c.cell_id AND k.state = 'SPENT' AND NOT k.extra
        WHERE s.state = 'FINISHED' AND s.reason = 'budget spent' AND NOT EXISTS (
            SELECT FROM orchestrator.event e
            WHERE e.cell_id = c.cell_id AND e.kind = 'cell opened again' AND e.at > s.launched_at
        )
        GROUP BY c.cell_id, c.study, c.ordinal, c.completed, s.per_cell
        HAVING count(k.ticket_id) < s.per_cell OR (c.completed = 0 AND NOT EXISTS (
            SELECT FROM orchestrator.event e WHERE e.cell_id = c.cell_id
                AND e.kind = 'no complete trial'
        ))""",
}

# One run to the end on the device takes its row away, so there are never more than have failed. A
# claim under way may meet the closing.
_SHORTAGES = {
    "out of memory": """
        SELECT c.study, format('cell %s counts %s trials in a row that ran out of memory on %s, but %s have failed in it',
            c.ordinal, h.in_a_row, h.device_name, c.failed)
        FROM cells c JOIN orchestrator.shortage h ON h.cell_id = c.cell_id
            WHERE h.in_a_row > c.failed""",
    "closed for a device": """
        SELECT c.study, format('cell %s is closed for %s since %s by trial %s, which %s', c.ordinal,
            h.device_name,
            coalesce(CAST(h.closed_at AS text), 'no time'),
                coalesce(CAST(t.number AS text), 'none'),
            coalesce('is ' || t.state, 'is not there'))
        FROM cells c JOIN orchestrator.shortage h ON h.cell_id = c.cell_id AND h.closed
        LEFT JOIN ledger t ON t.trial_id = h.trial_id
        WHERE h.closed_at IS NULL OR t.study_id IS DISTINCT FROM c.study_id OR t.state <> 'FAIL'""",
    "claimed where closed": """
        SELECT t.study, format('%s was claimed for %s, but its cell %s was closed for that before',
            t.who, a.device_name,
            c.ordinal)
        FROM ledger t
        JOIN tickets k ON k.ticket_id = t.ticket_id AND NOT k.extra
        JOIN cells c ON c.cell_id = t.cell_id
        JOIN orchestrator.attempt a ON a.trial_id = t.trial_id AND a.attempt = 1
        JOIN orchestrator.shortage h ON h.cell_id = t.cell_id AND h.closed
            AND h.device_name = a.device_name
            AND h.memory = 'gpu' AND h.bytes = a.gpu_bytes
        WHERE t.claimed_at > h.closed_at + interval '1 minute'""",
}

_STUDIES = {
    "finished early": """
        SELECT s.study, format('the study is finished (%s), but %s tickets are not spent: %s',
            s.reason, count(*),
            string_agg(CAST(k.ordinal AS text), ', ' ORDER BY k.ordinal))
        FROM ours s JOIN tickets k ON k.study_id = s.study_id AND k.state IN ('OPEN', 'LIVE')
        WHERE s.state = 'FINISHED' AND s.reason IN ('budget spent', 'every cell is closed')
        GROUP BY s.study_id, s.study, s.reason""",
    "never ends": """
        SELECT s.study, 'the study is active, but no ticket is left to spend'
        FROM ours s
        WHERE s.state = 'ACTIVE'
            AND NOT EXISTS (SELECT FROM tickets k WHERE k.study_id = s.study_id
                AND k.state IN ('OPEN', 'LIVE'))""",
    # A claim may meet the end of the study's time; the next sweep of any worker settles what was
    # given back.
    "runs on": """
        SELECT t.study, format('the study is finished, but %s is %s', t.who, t.state)
        FROM ledger t LEFT JOIN orchestrator.attempt a ON a.trial_id = t.trial_id
            AND a.attempt = t.attempts
        WHERE t.study_state = 'FINISHED' AND t.live
            AND coalesce(a.ended_at, a.started_at, t.claimed_at) < now() - interval '1 minute'""",
}

# Its own transaction only reads, whatever the server takes.
_READ_ONLY = "(pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on')"

_FLEET = {
    "not served": """
        SELECT s.study, format('none of the workers that might serve it can: %s',
            string_agg(DISTINCT w.refusals #>> ARRAY[CAST(s.study_id AS text), 'why'], '; '))
        FROM ours s JOIN studies o ON o.study_id = s.study_id
        JOIN orchestrator.worker w ON w.state = 'ACTIVE' AND w.lease_until > now() AND (
            w.studies IS NULL OR EXISTS (
                SELECT FROM json_array_elements_text(w.studies) AS n(name)
                    WHERE n.name IN (s.name, o.study_name)
            )
        )
        WHERE s.state = 'ACTIVE' AND (s.deadline_at IS NULL OR s.deadline_at > now())
        GROUP BY s.study_id, s.study, s.revision
        HAVING bool_and(coalesce(
            w.refusals #>> ARRAY[CAST(s.study_id AS text), 'revision'] = CAST(s.revision AS text),
                false
        ))""",
    # As long as the living have to notice and to evict: a lease, after it the TTL that a rescuer
    # watches, and one heartbeat.
    "expired": f"""
        SELECT NULL, format('worker %s on %s fell silent %s ago and nobody has evicted it; a worker or launch would',
            w.worker_id, w.host, date_trunc('second', now() - w.lease_until))
        FROM orchestrator.worker w
        WHERE w.state = 'ACTIVE' AND NOT {_READ_ONLY}
            AND now() > greatest(w.lease_until,
                pg_postmaster_start_time() + make_interval(secs => w.ttl_s))
                + make_interval(secs => 1.5 * w.ttl_s)""",
    "trial of the gone": """
        SELECT t.study, format('%s is held by worker %s, which is gone: %s', t.who, w.worker_id,
            w.reason)
        FROM ledger t JOIN orchestrator.worker w ON w.worker_id = t.worker_id WHERE t.live
            AND w.state = 'GONE'""",
    "slot of the gone": """
        SELECT NULL, format('slot %s of %s is held by worker %s, which is gone: %s', d.slot,
            d.device, w.worker_id, w.reason)
        FROM orchestrator.slot d JOIN orchestrator.worker w ON w.worker_id = d.worker_id
            WHERE w.state = 'GONE'""",
    "two at once": """
        SELECT min(t.study), format('worker %s runs %s at once', t.worker_id,
            string_agg(t.who, ', ' ORDER BY t.trial_id))
        FROM ledger t JOIN orchestrator.attempt a ON a.trial_id = t.trial_id AND a.ended_at IS NULL
        WHERE t.live AND t.worker_id IS NOT NULL
        GROUP BY t.worker_id HAVING count(*) > 1""",
    "two ahead": """
        SELECT min(t.study), format('worker %s holds %s, but prepares one trial ahead at most',
            t.worker_id,
            string_agg(t.who, ', ' ORDER BY t.trial_id))
        FROM ledger t
        WHERE t.worker_id IS NOT NULL AND t.state IN ('CLAIMED', 'PREPARED')
        GROUP BY t.worker_id HAVING count(*) > 1""",
    # What it holds it says with each renewal, and gives back what it does not hold right after.
    # What it got since then it could not say yet.
    "not run": """
        SELECT t.study, format('%s is held by worker %s on %s, which does not run it', t.who,
            w.worker_id, w.host)
        FROM ledger t JOIN orchestrator.worker w ON w.worker_id = t.worker_id
        LEFT JOIN orchestrator.attempt a ON a.trial_id = t.trial_id AND a.attempt = t.attempts
        WHERE t.live AND w.state = 'ACTIVE' AND w.holds IS NOT NULL AND t.token <> ALL(w.holds)
            AND t.state <> 'PREPARED'
            AND coalesce(a.started_at, t.claimed_at) < w.lease_until -
                make_interval(secs => w.ttl_s)
            AND now() > w.lease_until - make_interval(secs => w.ttl_s) + interval '5 s'""",
}

INVARIANTS = _IN_OPTUNA | _TRIALS | _TICKETS | _CELLS | _SHORTAGES | _STUDIES | _FLEET
"""By kind, the question to which a healthy database has no answer: rows of study and message."""

# Optuna 5 writes naive UTC where earlier ones wrote naive local time, under the same schema
# revision. Our own are always UTC.
# What is certain by itself: times that are still to come, and an end before the beginning. And in a
# study of ours, where ids
# are drawn in the order of creation: trials between two of ours that are off by the same quarters
# of an hour, three at least.
_LOCAL_TIME = """
    WITH others AS (
        SELECT o.study_id, o.study_name, t.trial_id, t.datetime_start AS began,
            t.datetime_complete AS ended
        FROM trials t JOIN studies o ON o.study_id = t.study_id
        WHERE (CAST(:study AS text) IS NULL OR o.study_name = :study)
            AND NOT EXISTS (SELECT FROM orchestrator.trial u WHERE u.optuna_trial_id = t.trial_id)
    ), impossible AS (
        SELECT o.study_id, o.study_name, o.trial_id FROM others o
        WHERE greatest(o.began, o.ended) > timezone('utc', now()) + interval '10 minutes'
            OR o.ended < o.began - interval '10 minutes'
    ), between_ours AS (
        SELECT o.study_id, o.study_name, o.trial_id,
            round(extract(epoch FROM o.began - p.at) / 900) AS quarters
        FROM others o
        CROSS JOIN LATERAL (
            SELECT timezone('utc', u.claimed_at) AS at FROM orchestrator.trial u
            WHERE u.study_id = o.study_id AND u.optuna_trial_id < o.trial_id
                ORDER BY u.optuna_trial_id DESC LIMIT 1
        ) AS p
        CROSS JOIN LATERAL (
            SELECT t.datetime_start AS at FROM orchestrator.trial u
                JOIN trials t ON t.trial_id = u.optuna_trial_id
            WHERE u.study_id = o.study_id AND u.optuna_trial_id > o.trial_id
                ORDER BY u.optuna_trial_id LIMIT 1
        ) AS n
        WHERE n.at - p.at < interval '5 minutes'
            AND o.began - make_interval(mins => CAST(15 * round(extract(epoch
                FROM o.began - p.at) / 900) AS int))
                BETWEEN p.at - interval '5 s' AND n.at + interval '5 s'
    ), shifted AS (
        SELECT b.study_id, b.study_name, unnest(array_agg(b.trial_id)) AS trial_id
            FROM between_ours b
        WHERE b.quarters <> 0 AND abs(b.quarters) <= 56
        GROUP BY b.study_id, b.study_name, b.quarters HAVING count(*) >= 3
    )
    SELECT f.study_name, format('%s of its trials carry times that are not UTC: an Optuna before 5 writes to it too, which'
        ' stores local time. Use one version for a storage, or set TZ=UTC where the older one runs',
            count(*))
    FROM (SELECT * FROM impossible UNION SELECT * FROM shifted) AS f
    GROUP BY f.study_id, f.study_name"""

NOTES = {
    "older Optuna": """
        SELECT CAST(NULL AS text), format('Optuna %s made these tables. Before 5 it stored local times, since then UTC, under'
            ' the same schema revision: trials of before the change are shown shifted, unless their hosts were set to UTC',
            v.library_version)
        FROM version_info v
        WHERE v.library_version ~ '^[0-4][.]' AND EXISTS (
            SELECT FROM trials t WHERE NOT EXISTS (SELECT FROM orchestrator.trial u
                WHERE u.optuna_trial_id = t.trial_id)
        )""",
    "local time": _LOCAL_TIME,
    "read only": f"""
        SELECT CAST(NULL AS text), 'the server takes no writes now, and workers wait until it does'
        WHERE {_READ_ONLY}""",
    "deleted": """
        SELECT s.name, 'the study was deleted elsewhere; the next study that is made clears what is left of it'
        FROM orchestrator.study s
        WHERE (CAST(:study AS text) IS NULL OR s.name = :study)
            AND NOT EXISTS (SELECT FROM studies o WHERE o.study_id = s.study_id)""",
    "renamed": """
        SELECT s.study, format('the study is called %s in Optuna', o.study_name)
        FROM ours s JOIN studies o ON o.study_id = s.study_id WHERE o.study_name <> s.name""",
}
"""What is nobody's fault and breaks no promise."""
