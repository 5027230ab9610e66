"""Whether a database keeps the promises of the ledger: one statement an invariant, each a question
that nothing answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from orchestrator.store.states import LIVE

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database


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
        """What to know about a storage that an Optuna before 5 made; None for any other."""
        with self._database.transaction() as c:
            message: str | None = c.execute(
                sa.text(f"SELECT message FROM ({NOTES['older Optuna']}) AS f(study, message)")
            ).scalar()
        return message

    def examine(self, study: str | None = None) -> Examination:
        """Checks one study and the fleet, or all studies. All statements see the same moment, so
        work under way causes no findings.
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
    FROM orchestrator.study s JOIN studies p ON p.study_id = s.study_id
    WHERE CAST(:study AS text) IS NULL OR :study IN (s.name, p.study_name) OR EXISTS (
        SELECT FROM orchestrator.stage g JOIN orchestrator.chain k ON k.chain_id = g.chain_id
        WHERE g.study_id = s.study_id AND k.name = :study)
), cells AS (
    SELECT l.*, s.study FROM orchestrator.cell l JOIN ours s ON s.study_id = l.study_id
), tickets AS (
    SELECT t.*, s.study FROM orchestrator.ticket t JOIN ours s ON s.study_id = t.study_id
), ledger AS (
    SELECT o.*, s.study, s.news, s.state AS study_state, s.launched_at,
        CASE WHEN o.number IS NULL THEN 'claim ' || o.trial_id ELSE 'trial ' || o.number END AS who,
        o.state IN {LIVE} AS live, CASE o.state WHEN 'PREPARED' THEN 'RUNNING'
            ELSE o.state END AS optuna_state,
        o.state IN ('COMPLETE', 'PRUNED') AND o.holds_ticket AS accepted
    FROM orchestrator.trial o JOIN ours s ON s.study_id = o.study_id
), items AS MATERIALIZED (
    -- what each revision declares: the values or choices of a path, or the ends of its range
    SELECT v.study_id, v.revision, i.item ->> 'path' AS path, i.axis,
        v.revision = max(v.revision) OVER (PARTITION BY v.study_id) AS newest,
        CASE WHEN i.axis THEN i.item -> 'values'
            WHEN i.item ->> 'kind' = 'categorical' THEN i.item -> 'choices' END AS listed,
        CAST(i.item ->> 'low' AS numeric) AS low, CAST(i.item ->> 'high' AS numeric) AS high
    FROM orchestrator.revision v JOIN ours s ON s.study_id = v.study_id
    CROSS JOIN LATERAL (
        SELECT a.item, true AS axis FROM json_array_elements(v.spec -> 'grid') AS a(item)
        UNION ALL
        SELECT b.item, false FROM json_array_elements(v.spec -> 'search') AS b(item)
    ) AS i
)"""

_COUNT = (
    "SELECT (SELECT count(*) FROM ours), (SELECT count(*) FROM ledger WHERE state <> 'CLAIMED')"
)

_IN_OPTUNA = {
    "no Optuna trial": """
        SELECT o.study, format('%s is %s, but Optuna has no trial of id %s', o.who, o.state,
            o.optuna_trial_id)
        FROM ledger o
        WHERE o.state <> 'CLAIMED' AND NOT EXISTS (SELECT FROM trials q
            WHERE q.trial_id = o.optuna_trial_id)""",
    "state differs": """
        SELECT o.study, format('%s is %s, but %s in Optuna', o.who, o.state, q.state)
        FROM ledger o JOIN trials q ON q.trial_id = o.optuna_trial_id
        WHERE CAST(q.state AS text) <> o.optuna_state""",
    "number differs": """
        SELECT o.study, format('%s has the number %s in study %s of Optuna', o.who, q.number,
            q.study_id)
        FROM ledger o JOIN trials q ON q.trial_id = o.optuna_trial_id
        WHERE (q.number, q.study_id) IS DISTINCT FROM (o.number, o.study_id)""",
    "values differ": """
        SELECT o.study, format('%s is %s and has %s values in Optuna, not %s', o.who, o.state, v.n,
            w.n)
        FROM ledger o JOIN trials q ON q.trial_id = o.optuna_trial_id
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM trial_values v
            WHERE v.trial_id = o.optuna_trial_id) AS v
        CROSS JOIN LATERAL (
            SELECT count(*) AS n FROM study_directions d WHERE d.study_id = o.study_id
                AND o.state = 'COMPLETE'
        ) AS w
        WHERE v.n <> w.n""",
    "parameters differ": """
        SELECT o.study, format('%s has the parameters %s, but %s in Optuna', o.who,
            array_to_string(here.names, ', '),
                coalesce(nullif(array_to_string(there.names, ', '), ''), 'none'))
        FROM ledger o JOIN trials q ON q.trial_id = o.optuna_trial_id
        CROSS JOIN LATERAL (SELECT ARRAY(SELECT json_object_keys(o.values) ORDER BY 1) AS names) AS
            here
        CROSS JOIN LATERAL (
            SELECT ARRAY(
                SELECT CAST(p.param_name AS text) FROM trial_params p
                    WHERE p.trial_id = o.optuna_trial_id ORDER BY 1
            ) AS names
        ) AS there
        WHERE here.names <> there.names""",
    "times differ": """
        SELECT o.study, format('%s is %s, but in Optuna started at %s and ended at %s', o.who,
            o.state,
            coalesce(CAST(q.datetime_start AS text), 'no time'),
                coalesce(CAST(q.datetime_complete AS text), 'no time'))
        FROM ledger o JOIN trials q ON q.trial_id = o.optuna_trial_id
        WHERE q.datetime_start IS NULL OR (q.datetime_complete IS NULL) <> o.live""",
    "orphan": """
        SELECT s.study,
            format('trial %s of Optuna was made by a worker, but the ledger does not have it',
                q.number)
        FROM ours s JOIN trials q ON q.study_id = s.study_id
        WHERE EXISTS (SELECT FROM trial_system_attributes a WHERE a.trial_id = q.trial_id
            AND a.key LIKE 'orchestrator:%')
            AND NOT EXISTS (SELECT FROM orchestrator.trial o
                WHERE o.optuna_trial_id = q.trial_id)""",
    "numbers": """
        SELECT s.study, format('the numbers of its %s trials in Optuna are not 0 to %s, each once',
            count(*), count(*) - 1)
        FROM ours s JOIN trials q ON q.study_id = s.study_id
        GROUP BY s.study_id, s.study
        HAVING count(DISTINCT q.number) <> count(*) OR min(q.number) <> 0
            OR max(q.number) <> count(*) - 1""",
}

_TRIALS = {
    "claim": """
        SELECT o.study, format('%s has no Optuna trial yet, but %s', o.who,
            CASE WHEN o.worker_id IS NULL THEN 'no worker holds it'
                ELSE 'has a number, a place in the news or an attempt' END)
        FROM ledger o
        WHERE o.state = 'CLAIMED'
            AND (o.worker_id IS NULL OR o.attempts > 0
                OR num_nonnulls(o.number, o.optuna_trial_id, o.seq) > 0)""",
    "ended": """
        SELECT o.study, format('%s is %s, but %s', o.who, o.state, concat_ws(', ',
            CASE WHEN o.ended_at IS NULL THEN 'has not ended' ELSE 'has ended' END,
            'is held by worker ' || o.worker_id,
            CASE WHEN o.failure IS NULL THEN 'has no failure'
                ELSE 'has the failure: ' || o.failure END))
        FROM ledger o
        WHERE (o.ended_at IS NULL) <> o.live
            OR (o.worker_id IS NOT NULL AND NOT o.live)
            OR (o.failure IS NULL AND o.state = 'FAIL')
                OR (o.failure IS NOT NULL AND (o.live OR o.accepted))""",
    "attempts": """
        SELECT o.study, format('%s counts %s attempts, but those it has are: %s', o.who, o.attempts,
            coalesce(a.list, 'none'))
        FROM ledger o
        LEFT JOIN (
            SELECT a.trial_id, count(*) AS n, min(a.attempt) AS first, max(a.attempt) AS last,
                string_agg(CAST(a.attempt AS text), ', ' ORDER BY a.attempt) AS list
            FROM orchestrator.attempt a GROUP BY a.trial_id
        ) AS a ON a.trial_id = o.trial_id
        WHERE (coalesce(a.n, 0), coalesce(a.last, 0)) <> (o.attempts, o.attempts)
            OR a.first <> 1""",
    # Fewer than counted is right: a result that came late is how the attempt ended after all.
    "counts": """
        SELECT o.study, format('%s counts %s attempts lost and %s run again, but has %s and %s',
            o.who, o.lost, o.retries,
            count(*) FILTER (WHERE a.outcome = 'lost'),
                count(*) FILTER (WHERE a.outcome = 'retried'))
        FROM ledger o JOIN orchestrator.attempt a ON a.trial_id = o.trial_id
        GROUP BY o.study, o.who, o.lost, o.retries, o.trial_id
        HAVING o.lost < count(*) FILTER (WHERE a.outcome = 'lost')
            OR o.retries < count(*) FILTER (WHERE a.outcome = 'retried')""",
    "attempt open": """
        SELECT o.study, format('attempt %s of %s %s', a.attempt, o.who,
            CASE WHEN a.ended_at IS NULL THEN 'has not ended, but nobody runs it'
                ELSE 'has ended, but its worker runs on' END)
        FROM ledger o JOIN orchestrator.attempt a ON a.trial_id = o.trial_id
        WHERE num_nonnulls(a.ended_at, a.outcome) = 1
            OR (a.ended_at IS NULL) <> (o.live AND o.worker_id IS NOT NULL
                AND a.attempt = o.attempts)""",
    "news": """
        SELECT o.study, format('%s is at %s in the news, which ends at %s', o.who,
            coalesce(CAST(o.seq AS text), 'no place'),
            o.news)
        FROM ledger o WHERE o.state <> 'CLAIMED' AND (o.seq IS NULL OR o.seq > o.news)""",
    "news twice": """
        SELECT o.study, format('%s are all at %s in the news',
            string_agg(o.who, ', ' ORDER BY o.number), o.seq)
        FROM ledger o WHERE o.seq IS NOT NULL GROUP BY o.study_id, o.study, o.seq
            HAVING count(*) > 1""",
    "token twice": """
        SELECT min(o.study), format('%s have the same token %s',
            string_agg(o.who, ', ' ORDER BY o.trial_id), o.token)
        FROM ledger o GROUP BY o.token HAVING count(*) > 1""",
}

_TICKETS = {
    "ticket": """
        SELECT t.study, format('ticket %s is %s, but is held by %s', t.ordinal, t.state,
            coalesce(o.who || ', which is ' || o.state, 'nobody'))
        FROM tickets t LEFT JOIN ledger o ON o.ticket_id = t.ticket_id AND o.holds_ticket
        WHERE CASE t.state
            WHEN 'LIVE' THEN o.live IS NOT TRUE
            WHEN 'SPENT' THEN o.accepted IS NOT TRUE
            ELSE o.trial_id IS NOT NULL END""",
    "accepted twice": """
        SELECT t.study, format('ticket %s has several results: %s', t.ordinal,
            string_agg(o.who, ', ' ORDER BY o.number))
        FROM tickets t JOIN ledger o ON o.ticket_id = t.ticket_id
            AND (o.state = 'COMPLETE' OR o.accepted)
        GROUP BY t.ticket_id, t.study, t.ordinal HAVING count(*) > 1""",
    "holds": """
        SELECT o.study, format('%s is %s, but %s its ticket', o.who, o.state,
            CASE WHEN o.holds_ticket THEN 'holds' ELSE 'does not hold' END)
        FROM ledger o WHERE o.state <> 'PRUNED' AND o.holds_ticket = (o.state = 'FAIL')""",
    "cell of ticket": """
        SELECT o.study, format('%s runs in another cell than its ticket %s is bound to', o.who,
            t.ordinal)
        FROM ledger o JOIN tickets t ON t.ticket_id = o.ticket_id
        WHERE o.study_id <> t.study_id
            OR (o.holds_ticket AND t.cell_id IS DISTINCT FROM o.cell_id)""",
    # By when the last share was spent, not pair by pair: there may be 100,000 shares and as many
    # other tickets.
    "ahead of shares": """
        SELECT o.study,
            format('%s got ticket %s, no share of a cell, before the share %s was spent',
                o.who, t.ordinal, (
            SELECT min(share.ordinal)
            FROM tickets share LEFT JOIN ledger done ON done.ticket_id = share.ticket_id
                AND done.accepted
            WHERE share.study_id = t.study_id AND share.share IS NOT NULL
                AND share.state <> 'VOID' AND coalesce(done.ended_at, 'infinity') > o.claimed_at
        ))
        FROM tickets t
        JOIN ledger o ON o.ticket_id = t.ticket_id AND o.holds_ticket
        JOIN (
            SELECT share.study_id, max(coalesce(done.ended_at, 'infinity')) AS spent_at
            FROM tickets share LEFT JOIN ledger done ON done.ticket_id = share.ticket_id
                AND done.accepted
            WHERE share.share IS NOT NULL AND share.state <> 'VOID'
            GROUP BY share.study_id
        ) AS shares ON shares.study_id = t.study_id AND shares.spent_at > o.claimed_at
        WHERE t.share IS NULL AND NOT t.extra AND o.claimed_at > greatest(o.launched_at, (
                SELECT max(e.at) FROM orchestrator.event e WHERE e.study_id = t.study_id
                    AND e.kind = 'cell opened again'
            ))
            AND NOT EXISTS (SELECT FROM orchestrator.event e WHERE e.trial_id = o.trial_id
                AND e.kind = 'share waits')""",
    "over budget": """
        SELECT s.study, format('%s tickets count for a budget of %s trials', count(*),
            s.budget_trials)
        FROM ours s
        JOIN tickets t ON t.study_id = s.study_id AND t.state <> 'VOID' AND NOT t.extra
        CROSS JOIN LATERAL (
            SELECT EXISTS (
                SELECT FROM orchestrator.trial o WHERE o.ticket_id = t.ticket_id
                    AND o.claimed_at < s.launched_at
            ) AS before_launch
        ) AS used
        GROUP BY s.study_id, s.study, s.budget_trials
        HAVING count(*) > greatest(s.budget_trials, count(*) FILTER (WHERE used.before_launch))""",
}

_CELLS = {
    # An older version counted a trial that pruned itself before its cell had a complete one as
    # failed, and recorded it as such.
    "tally": """
        SELECT l.study,
            format('cell %s counts %s complete, %s pruned, %s failed, but has %s, %s and %s',
                l.ordinal,
            l.completed, l.pruned, l.failed, n.completed, n.pruned, n.failed)
        FROM cells l
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE o.state = 'COMPLETE') AS completed,
                count(*) FILTER (WHERE o.state = 'PRUNED' AND o.holds_ticket) AS pruned,
                count(*) FILTER (
                    WHERE NOT o.holds_ticket AND (a.outcome = 'failed'
                        OR (a.outcome = 'pruned' AND o.failure IS NOT NULL))
                ) AS failed
            FROM orchestrator.trial o
            LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
            WHERE o.cell_id = l.cell_id
        ) AS n
        WHERE (l.completed, l.pruned, l.failed) <> (n.completed, n.pruned, n.failed)""",
    "bound": """
        SELECT l.study, format('cell %s counts %s tickets, but has %s', l.ordinal, l.bound,
            count(t.ticket_id))
        FROM cells l LEFT JOIN tickets t ON t.cell_id = l.cell_id AND t.state <> 'VOID'
            AND NOT t.extra AND t.confirms IS NULL
        GROUP BY l.cell_id, l.study, l.ordinal, l.bound HAVING l.bound <> count(t.ticket_id)""",
    "left in a closed cell": """
        SELECT l.study, format('ticket %s is open, but its cell %s is closed', t.ordinal, l.ordinal)
        FROM cells l JOIN tickets t ON t.cell_id = l.cell_id
        WHERE l.state = 'CLOSED' AND t.state = 'OPEN' AND NOT t.extra""",
    # A cell that was closed, its tickets given to others, and then opened again may have to wait
    # for a launch with more trials.
    "short of its share": """
        SELECT l.study,
            format('the budget is spent, but cell %s has %s of its %s trials, %s of them complete',
                l.ordinal,
            count(t.ticket_id), s.per_cell, l.completed)
        FROM ours s JOIN cells l ON l.study_id = s.study_id AND l.state = 'OPEN'
        LEFT JOIN tickets t ON t.cell_id = l.cell_id AND t.state = 'SPENT' AND NOT t.extra
        WHERE s.state = 'FINISHED' AND (s.reason = 'budget spent'
                OR starts_with(s.reason, 'enough: ')) AND NOT EXISTS (
            SELECT FROM orchestrator.event e
            WHERE e.cell_id = l.cell_id AND e.kind = 'cell opened again' AND e.at > s.launched_at
        )
        GROUP BY l.cell_id, l.study, l.ordinal, l.completed, s.per_cell
        HAVING count(t.ticket_id) < s.per_cell OR (l.completed = 0 AND NOT EXISTS (
            SELECT FROM orchestrator.event e WHERE e.cell_id = l.cell_id
                AND e.kind = 'no complete trial'
        ))""",
}

# One run to the end on the device takes its row away, so there are never more than have failed. A
# claim under way may meet the closing.
_SHORTAGES = {
    "out of memory": """
        SELECT l.study,
            format('cell %s counts %s trials in a row that ran out of memory on %s, but %s have'
            ' failed in it',
            l.ordinal, h.in_a_row, h.device_name, l.failed)
        FROM cells l JOIN orchestrator.shortage h ON h.cell_id = l.cell_id
            WHERE h.in_a_row > l.failed""",
    "closed for a device": """
        SELECT l.study, format('cell %s is closed for %s since %s by trial %s, which %s', l.ordinal,
            h.device_name,
            coalesce(CAST(h.closed_at AS text), 'no time'),
                coalesce(CAST(o.number AS text), 'none'),
            coalesce('is ' || o.state, 'is not there'))
        FROM cells l JOIN orchestrator.shortage h ON h.cell_id = l.cell_id AND h.closed
        LEFT JOIN ledger o ON o.trial_id = h.trial_id
        WHERE h.closed_at IS NULL OR (h.probe_id IS NULL
            AND (o.study_id IS DISTINCT FROM l.study_id OR o.state <> 'FAIL'))""",
    "claimed where closed": """
        SELECT o.study, format('%s was claimed for %s, but its cell %s was closed for that before',
            o.who, a.device_name,
            l.ordinal)
        FROM ledger o
        JOIN tickets t ON t.ticket_id = o.ticket_id AND NOT t.extra
        JOIN cells l ON l.cell_id = o.cell_id
        JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = 1
        JOIN orchestrator.shortage h ON h.cell_id = o.cell_id AND h.closed
            AND h.device_name = a.device_name
            AND h.memory = 'gpu' AND h.bytes = a.gpu_bytes
        WHERE o.claimed_at > h.closed_at + interval '1 minute'""",
}

_STUDIES = {
    "finished early": """
        SELECT s.study, format('the study is finished (%s), but %s tickets are not spent: %s',
            s.reason, count(*),
            string_agg(CAST(t.ordinal AS text), ', ' ORDER BY t.ordinal))
        FROM ours s JOIN tickets t ON t.study_id = s.study_id AND t.state IN ('OPEN', 'LIVE')
        WHERE s.state = 'FINISHED' AND (s.reason IN ('budget spent', 'every cell is closed')
            OR starts_with(s.reason, 'enough: '))
        GROUP BY s.study_id, s.study, s.reason""",
    "never ends": """
        SELECT s.study, 'the study is active, but no ticket is left to spend'
        FROM ours s
        WHERE s.state = 'ACTIVE'
            AND NOT EXISTS (SELECT FROM tickets t WHERE t.study_id = s.study_id
                AND t.state IN ('OPEN', 'LIVE'))""",
    # A claim may meet the end of the study's time; the next sweep of any worker settles what was
    # given back.
    "runs on": """
        SELECT o.study, format('the study is finished, but %s is %s', o.who, o.state)
        FROM ledger o LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id
            AND a.attempt = o.attempts
        WHERE o.study_state = 'FINISHED' AND o.live
            AND coalesce(a.ended_at, a.started_at, o.claimed_at) < now() - interval '1 minute'""",
}

# Its own transaction only reads, whatever the server takes.
_READ_ONLY = "(pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on')"

_FLEET = {
    "not served": """
        SELECT s.study, format('none of the workers that might serve it can: %s',
            string_agg(DISTINCT w.refusals #>> ARRAY[CAST(s.study_id AS text), 'why'], '; '))
        FROM ours s JOIN studies p ON p.study_id = s.study_id
        JOIN orchestrator.worker w ON w.state = 'ACTIVE' AND w.lease_until > now() AND (
            w.studies IS NULL OR EXISTS (
                SELECT FROM json_array_elements_text(w.studies) AS n(name)
                    WHERE n.name IN (s.name, p.study_name)
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
        SELECT NULL,
            format('worker %s on %s fell silent %s ago and nobody has evicted it; a worker or'
            ' launch would',
            w.worker_id, w.host, date_trunc('second', now() - w.lease_until))
        FROM orchestrator.worker w
        WHERE w.state = 'ACTIVE' AND NOT {_READ_ONLY}
            AND now() > greatest(w.lease_until,
                pg_postmaster_start_time() + make_interval(secs => w.ttl_s))
                + make_interval(secs => 1.5 * w.ttl_s)""",
    "trial of the gone": """
        SELECT o.study, format('%s is held by worker %s, which is gone: %s', o.who, w.worker_id,
            w.reason)
        FROM ledger o JOIN orchestrator.worker w ON w.worker_id = o.worker_id WHERE o.live
            AND w.state = 'GONE'""",
    "slot of the gone": """
        SELECT NULL, format('slot %s of %s is held by worker %s, which is gone: %s', d.slot,
            d.device, w.worker_id, w.reason)
        FROM orchestrator.slot d JOIN orchestrator.worker w ON w.worker_id = d.worker_id
            WHERE w.state = 'GONE'""",
    "two at once": """
        SELECT min(o.study), format('worker %s runs %s at once', o.worker_id,
            string_agg(o.who, ', ' ORDER BY o.trial_id))
        FROM ledger o JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.ended_at IS NULL
        WHERE o.live AND o.worker_id IS NOT NULL
        GROUP BY o.worker_id HAVING count(*) > 1""",
    "two ahead": """
        SELECT min(o.study), format('worker %s holds %s, but prepares one trial ahead at most',
            o.worker_id,
            string_agg(o.who, ', ' ORDER BY o.trial_id))
        FROM ledger o
        WHERE o.worker_id IS NOT NULL AND o.state IN ('CLAIMED', 'PREPARED')
        GROUP BY o.worker_id HAVING count(*) > 1""",
    # What it holds it says with each renewal, and gives back what it does not hold right after.
    # What it got since then it could not say yet.
    "not run": """
        SELECT o.study, format('%s is held by worker %s on %s, which does not run it', o.who,
            w.worker_id, w.host)
        FROM ledger o JOIN orchestrator.worker w ON w.worker_id = o.worker_id
        LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
        WHERE o.live AND w.state = 'ACTIVE' AND w.holds IS NOT NULL AND o.token <> ALL(w.holds)
            AND o.state <> 'PREPARED'
            AND coalesce(a.started_at, o.claimed_at) < w.lease_until -
                make_interval(secs => w.ttl_s)
            AND now() > w.lease_until - make_interval(secs => w.ttl_s) + interval '5 s'""",
}

# What a trial by hand, a repetition or a retry has was given to it, and may be from an earlier
# revision; what it got since is not in the revision it was made under.
_REVISIONS = {
    "revision": """
        SELECT o.study, format('%s was made under revision %s, which the study has not', o.who,
            o.revision)
        FROM ledger o
        WHERE o.state <> 'CLAIMED' AND NOT EXISTS (SELECT FROM orchestrator.revision v
            WHERE v.study_id = o.study_id AND v.revision = o.revision)""",
    "grid differs": """
        SELECT s.study, format('the grid of revision %s has %s cells, but the study has %s',
            g.revision, g.n, coalesce(n.n, 0))
        FROM ours s
        CROSS JOIN LATERAL (
            SELECT coalesce(CAST(s.spec ->> 'revision' AS int), 1) AS revision,
                coalesce((SELECT round(exp(sum(ln(json_array_length(x.axis -> 'values')))))
                    FROM json_array_elements(s.spec -> 'grid') AS x(axis)), 1) AS n
        ) AS g
        LEFT JOIN (
            SELECT l.study_id, count(*) AS n, max(l.ordinal) AS last FROM cells l
            WHERE l.removed_in IS NULL GROUP BY l.study_id
        ) AS n ON n.study_id = s.study_id
        WHERE g.n <> coalesce(n.n, 0) OR n.last <> n.n - 1""",
    # By EXCEPT, which needs no estimate: there may be 100,000 cells, and as many values of an axis.
    "off the grid": """
        SELECT s.study, format('cell %s has %s=%s, which revision %s of the study has not',
            l.ordinal, b.path, b.value, coalesce(s.spec ->> 'revision', '1'))
        FROM (
            SELECT l.study_id, i.path, CAST(l.values -> i.path AS jsonb) AS value
            FROM cells l JOIN items i ON i.study_id = l.study_id AND i.axis AND i.newest
            WHERE l.removed_in IS NULL
            EXCEPT
            SELECT i.study_id, i.path, CAST(e.value AS jsonb)
            FROM items i, json_array_elements(i.listed) AS e(value) WHERE i.axis AND i.newest
        ) AS b
        JOIN ours s ON s.study_id = b.study_id
        JOIN cells l ON l.study_id = b.study_id AND l.removed_in IS NULL
            AND CAST(l.values -> b.path AS jsonb) = b.value""",
    "two distributions": """
        SELECT s.study, format('%s has %s distributions in the trials of the study', p.param_name,
            count(DISTINCT p.distribution_json))
        FROM ours s JOIN ledger o ON o.study_id = s.study_id
        JOIN trial_params p ON p.trial_id = o.optuna_trial_id
        WHERE p.param_name IN (
            SELECT x.item ->> 'path' FROM json_array_elements(s.spec -> 'grid') AS x(item)
            UNION SELECT x.item ->> 'path' FROM json_array_elements(s.spec -> 'search') AS x(item)
        )
        GROUP BY s.study_id, s.study, p.param_name
        HAVING count(DISTINCT p.distribution_json) > 1""",
    "outside its revision": """
        SELECT o.study, format('%s has %s=%s, which revision %s did not search', o.who, b.path,
            o.values ->> b.path, b.revision)
        FROM (
            SELECT o.study_id, o.revision, i.path, i.axis, CAST(o.values -> i.path AS jsonb)
                AS value
            FROM ledger o JOIN items i ON i.study_id = o.study_id AND i.revision = o.revision
            WHERE i.listed IS NOT NULL AND o.values -> i.path IS NOT NULL
            EXCEPT
            SELECT i.study_id, i.revision, i.path, i.axis, CAST(e.value AS jsonb)
            FROM items i, json_array_elements(i.listed) AS e(value)
            UNION ALL
            SELECT o.study_id, o.revision, i.path, false, CAST(o.values -> i.path AS jsonb)
            FROM ledger o JOIN items i ON i.study_id = o.study_id AND i.revision = o.revision
            WHERE i.listed IS NULL
                AND CAST(o.values ->> i.path AS numeric) NOT BETWEEN i.low AND i.high
        ) AS b
        JOIN ledger o ON o.study_id = b.study_id AND o.revision = b.revision
            AND CAST(o.values -> b.path AS jsonb) = b.value
        WHERE b.axis OR NOT EXISTS (
            SELECT FROM trial_user_attributes u WHERE u.trial_id = o.optuna_trial_id
                AND u.key IN ('orchestrator\\:by_hand', 'orchestrator\\:retried_from',
                    'orchestrator\\:confirms', 'orchestrator\\:copied_from')
        )""",
}

_STAGES = {
    "stage out of order": """
        SELECT s.study, format('stage %s of %s began before stage %s, which comes before it',
            g.name, k.name, f.name)
        FROM ours s JOIN orchestrator.stage g ON g.study_id = s.study_id
        JOIN orchestrator.chain k ON k.chain_id = g.chain_id
        JOIN orchestrator.stage f ON f.chain_id = g.chain_id AND f.ordinal < g.ordinal
        WHERE f.began_at >= g.began_at""",
    "inheritance lost": """
        SELECT s.study, format('stage %s of %s inherited %s=%s, but its study has %s', g.name,
            k.name, v.path, v.value, coalesce(CAST(CAST(s.spec AS jsonb)
                #> (ARRAY['params'] || string_to_array(v.path, '.')) AS text), 'nothing'))
        FROM ours s JOIN orchestrator.stage g ON g.study_id = s.study_id
        JOIN orchestrator.chain k ON k.chain_id = g.chain_id
        CROSS JOIN LATERAL jsonb_each(CAST(g.inherited #> '{params}' AS jsonb)) AS v(path, value)
        WHERE v.value IS DISTINCT FROM CAST(s.spec AS jsonb)
            #> (ARRAY['params'] || string_to_array(v.path, '.'))""",
    "range lost": """
        SELECT s.study, format('stage %s of %s searches %s from %s to %s, but its study does not',
            g.name, k.name, v.one ->> 'path', v.one ->> 'low', v.one ->> 'high')
        FROM ours s JOIN orchestrator.stage g ON g.study_id = s.study_id
        JOIN orchestrator.chain k ON k.chain_id = g.chain_id
        CROSS JOIN LATERAL jsonb_array_elements(CAST(g.inherited #> '{search}' AS jsonb)) AS v(one)
        WHERE NOT CAST(s.spec #> '{search}' AS jsonb) @> jsonb_build_array(jsonb_build_object(
            'path', v.one -> 'path', 'low', v.one -> 'low', 'high', v.one -> 'high'))""",
}

INVARIANTS = (
    _IN_OPTUNA | _TRIALS | _TICKETS | _CELLS | _REVISIONS | _SHORTAGES | _STUDIES | _STAGES | _FLEET
)
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
    SELECT f.study_name,
        format('%s of its trials carry times that are not UTC: an Optuna before 5 writes to it'
        ' too, which'
        ' stores local time. Use one version for a storage, or set TZ=UTC where the older one runs',
            count(*))
    FROM (SELECT * FROM impossible UNION SELECT * FROM shifted) AS f
    GROUP BY f.study_id, f.study_name"""

NOTES = {
    "older Optuna": """
        SELECT CAST(NULL AS text),
            format('Optuna %s made these tables. Before 5 it stored local times, since then UTC,'
            ' under'
            ' the same schema revision: trials of before the change are shown shifted, unless'
            ' their hosts were set to UTC',
            v.library_version)
        FROM version_info v
        WHERE v.library_version ~ '^[0-4][.]' AND EXISTS (
            SELECT FROM trials q WHERE NOT EXISTS (SELECT FROM orchestrator.trial o
                WHERE o.optuna_trial_id = q.trial_id)
        )""",
    "local time": _LOCAL_TIME,
    "read only": f"""
        SELECT CAST(NULL AS text), 'the server takes no writes now, and workers wait until it does'
        WHERE {_READ_ONLY}""",
    "deleted": """
        SELECT s.name,
            'the study was deleted elsewhere; the next study that is made clears what is left of it'
        FROM orchestrator.study s
        WHERE (CAST(:study AS text) IS NULL OR s.name = :study)
            AND NOT EXISTS (SELECT FROM studies p WHERE p.study_id = s.study_id)""",
    "renamed": """
        SELECT s.study, format('the study is called %s in Optuna', p.study_name)
        FROM ours s JOIN studies p ON p.study_id = s.study_id WHERE p.study_name <> s.name""",
}
"""What is nobody's fault and breaks no promise."""
