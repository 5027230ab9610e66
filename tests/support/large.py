"""A study far under way, made in seconds: rows as thousands of claims, creates and finishes would
have left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import psycopg2.extensions

_STATEMENTS = (
    "INSERT INTO orchestrator.worker (token, host, process_scope, pid, pid_started, ttl_s, "
    "state, reason, lease_until, ended_at) SELECT (random() * 9e18)::bigint, 'gone', 'gone', 1, "
    "1, 60, 'GONE', 'ended in order', now(), now()",
    """
    INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
    SELECT ordinal, study_id, 'COMPLETE', now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'
    FROM orchestrator.ticket WHERE study_id = %(study)s AND ordinal BETWEEN %(first)s AND %(last)s
        ORDER BY ordinal
    """,
    """
    INSERT INTO orchestrator.trial (study_id, ticket_id, cell_id, state, number, optuna_trial_id,
        seq, created_seq, values,
        token, attempts, ended_at)
    SELECT k.study_id, k.ticket_id, k.cell_id, 'COMPLETE', o.number, o.trial_id, 2 * k.ordinal + 2,
        2 * k.ordinal + 1,
        json_build_object('a', k.ordinal, 'x', 0.5), (random() * 9e18)::bigint, 1, clock_timestamp()
    FROM orchestrator.ticket k JOIN trials o ON o.study_id = k.study_id AND o.number = k.ordinal
    WHERE k.study_id = %(study)s AND k.ordinal BETWEEN %(first)s AND %(last)s ORDER BY k.ordinal
    """,
    """
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT o.trial_id, p.name, p.value, p.distribution FROM trials o
    CROSS JOIN LATERAL (VALUES
        ('a', CAST(o.number AS float8),
            '{"name": "IntDistribution",'
            ' "attributes": {"log": false, "step": 1, "low": 0, "high": 1000000}}'),
        ('x', 0.5, '{"name": "FloatDistribution",'
            ' "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}')
    ) AS p(name, value, distribution)
    WHERE o.study_id = %(study)s AND o.number BETWEEN %(first)s AND %(last)s
    """,
    """
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, number, 'FINITE' FROM trials
    WHERE study_id = %(study)s AND number BETWEEN %(first)s AND %(last)s
    """,
    """
    INSERT INTO orchestrator.attempt (trial_id, attempt, worker_id, host, runs_dir, ended_at,
        outcome)
    SELECT t.trial_id, 1, w.worker_id, 'gone', '/nowhere', now(), 'completed'
    FROM orchestrator.trial t CROSS
        JOIN (SELECT max(worker_id) AS worker_id FROM orchestrator.worker) AS w
    WHERE t.study_id = %(study)s AND t.number BETWEEN %(first)s AND %(last)s
    """,
    (
        "UPDATE orchestrator.ticket SET state = 'LIVE' WHERE study_id = %(study)s AND ordinal "
        "BETWEEN %(first)s AND %(last)s"
    ),
    (
        "UPDATE orchestrator.ticket SET state = 'SPENT' WHERE study_id = %(study)s AND ordinal "
        "BETWEEN %(first)s AND %(last)s"
    ),
    """
    UPDATE orchestrator.cell c SET completed = completed + 1 FROM orchestrator.ticket k
    WHERE k.cell_id = c.cell_id AND k.study_id = %(study)s AND k.ordinal BETWEEN %(first)s
        AND %(last)s
    """,
    "UPDATE orchestrator.study SET news = 2 * %(last)s + 2 WHERE study_id = %(study)s",
)


def complete(url: str, study_id: int, first: int, last: int) -> None:
    """Gives each of the tickets `first` to `last`, shares of one axis `a`, its complete trial; the
    ones before have theirs.
    """
    with _superuser(url) as connection, connection.cursor() as cursor:
        for statement in _STATEMENTS:
            cursor.execute(statement, {"study": study_id, "first": first, "last": last})


def vacuum(url: str) -> None:
    """What autovacuum does within its minute."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute("VACUUM ANALYZE")
    connection.close()


@contextmanager
def _superuser(url: str) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            # no look at each foreign key: they are right
            cursor.execute("SET LOCAL session_replication_role = replica")
            yield connection
    finally:
        connection.close()
