"""What samplers learn of a study: its trials as they are created, report and end. Nothing here
writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import ASK_KEY, Param, StudySpec, TrialNews, value_label
from orchestrator.prior import Prior, SourceStudy
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Row, Statement, answers
from orchestrator.store.optuna.attributes import FAILURE_ATTR
from orchestrator.store.optuna.rows import stored_float, stored_values

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class News:
    """Trials as samplers read them; each call is one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def since(self, study_id: int, cursor: int) -> tuple[list[TrialNews], int]:
        """Our trials of the study created or ended after `cursor`, and the cursor for the next
        call.

        Positions are handed out in commit order under the study's lock, so that no late commit is
        ever behind the cursor.
        """
        return _news_and_cursor(
            self._database.execute(_SINCE, {"study_id": study_id, "cursor": cursor}), cursor
        )

    def at(self, study_id: int, position: int) -> list[TrialNews]:
        """Our trials of the study as they were at that position of the news: what ended later was
        running then.
        """
        rows = self._database.execute(_AT, {"study_id": study_id, "position": position})
        trials = [(_news(row.news), row.seq > position) for row in rows]
        return [
            TrialNews(n.number, "RUNNING", n.params, cell=n.cell) if later else n
            for n, later in trials
        ]

    def of(self, study_id: int, number: int) -> TrialNews | None:
        """One of our trials of the study, with what the sampler was asked with (`ASK_KEY`); None if
        there is none of that number.
        """
        rows = self._database.execute(_OF, {"study_id": study_id, "number": number})
        return _news(rows[0].news) if rows else None

    def running(self, study_id: int) -> list[TrialNews]:
        """Our unfinished trials of the study with what they have reported so far."""
        return [_news(row.news) for row in self._database.execute(_RUNNING, {"study_id": study_id})]

    def foreign(self, study_id: int, but: Iterable[int]) -> list[TrialNews]:
        """Finished trials that others (plain Optuna, a dashboard) added to the study, except those
        numbered in `but`.
        """
        rows = self._database.execute(_FOREIGN, {"study_id": study_id, "but": list(but)})
        return [_news(row.news) for row in rows]

    def priors(self, study_id: int, sources: Sequence[str]) -> list[Prior]:
        """What the study took from those sources when it was launched, in their order; of one that
        it took nothing from there is none.
        """
        which = {"study_id": study_id, "sources": list(sources)}
        return [Prior.from_json(row.prior) for row in self._database.execute(_PRIORS, which)]

    def source(self, name: str) -> SourceStudy:
        """A study of the database, of whatever origin, with its finished trials.

        Raises:
            ConfigError: there is none of this name, or a later version wrote its spec.
        """
        rows = self._database.execute(_SOURCE, {"name": name})
        if not rows:
            for stage in self._database.execute(_NEWEST_STAGE, {"name": name}):
                raise ConfigError(
                    f"warm_start={value_label(name)}: this is a chain of stages, and each of them "
                    f"is a study of its own; name one, such as its newest: "
                    f"warm_start={value_label(stage.study_name)}"
                )
            names = [row.study_name for row in self._database.execute(_NAMES)]
            raise ConfigError(
                f"warm_start={value_label(name)}: the database has no study of this "
                f"name{did_you_mean(name, names)}"
            )
        (row,) = rows
        try:
            spec = None if row.spec is None else StudySpec.from_json(row.spec)
        except (TypeError, KeyError) as error:
            raise ConfigError(
                f"warm_start={value_label(name)}: this version cannot read that study: {error}"
            ) from error
        named: Sequence[str] = json.loads(row.metrics) if row.metrics else ()
        trials = self._database.execute(_FINISHED, {"study_id": row.study_id})
        return SourceStudy(
            name,
            row.study_id,
            tuple("maximize" if d == "MAXIMIZE" else "minimize" for d in row.directions),
            spec.metrics if spec is not None else tuple(named),
            spec,
            tuple(_news(trial.news) for trial in trials),
        )


def news_after(c: Connection, study_id: int, cursor: int) -> tuple[list[TrialNews], int]:
    """`News.since` within a transaction."""
    return _news_and_cursor(answers(c, _SINCE, {"study_id": study_id, "cursor": cursor}), cursor)


def _news_and_cursor(rows: Sequence[Row], cursor: int) -> tuple[list[TrialNews], int]:
    return [_news(row.news) for row in rows], max((row.seq for row in rows), default=cursor)


def _news(stored: Sequence[Any]) -> TrialNews:
    number, state, ordinal, params, values, intermediate, system_attrs, failure = stored
    return TrialNews(
        number=number,
        state=state,
        params=tuple(
            Param(name, float(internal), distribution)
            for name, internal, distribution in params or ()
        ),
        values=stored_values(values),
        intermediate={step: stored_float(value, kind) for step, value, kind in intermediate or ()},
        system_attrs={key: json.loads(value) for key, value in system_attrs or ()},
        cell=ordinal,
        failure=failure,
    )


# A trial is one row and one JSON array, so that news cost one round trip, and one call of the
# decoder per trial, however many parameters and reports there are. `_NEWS_OF_TRIAL` leaves out
# `ASK_KEY`, which is long and which no sampler needs; user attributes are left out too.
_WITH_ASK = """
    json_build_array(
        q.number, q.state, l.ordinal,
        (SELECT json_agg(json_build_array(p.param_name, p.param_value,
            p.distribution_json) ORDER BY p.param_id)
           FROM trial_params p WHERE p.trial_id = q.trial_id),
        (SELECT json_agg(json_build_array(v.value, v.value_type) ORDER BY v.objective)
           FROM trial_values v WHERE v.trial_id = q.trial_id),
        (SELECT json_agg(json_build_array(i.step, i.intermediate_value, i.intermediate_value_type))
           FROM trial_intermediate_values i WHERE i.trial_id = q.trial_id),
        (SELECT json_agg(json_build_array(a.key, a.value_json))
           FROM trial_system_attributes a WHERE a.trial_id = q.trial_id),
        CASE WHEN q.state = 'FAIL' THEN (
            SELECT CAST(u.value_json AS json) ->> 'kind' FROM trial_user_attributes u
            WHERE u.trial_id = q.trial_id AND u.key = 'FAILURE_ATTR'
        ) END
    ) AS news
""".replace("FAILURE_ATTR", FAILURE_ATTR.replace(":", r"\:"))
_NEWS_OF_TRIAL = _WITH_ASK.replace(
    "WHERE a.trial_id", f"WHERE a.key <> '{ASK_KEY}' AND a.trial_id".replace(":", r"\:")
)
_OURS = """
    FROM orchestrator.trial o
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    JOIN trials q ON q.trial_id = o.optuna_trial_id
    WHERE o.study_id = :study_id
"""
# This reads few of many rows, and must not be planned again for each cursor. The subselects hide
# the parameters from the planner: it then takes the range for small, and looks trials up one by
# one (OFFSET 0 keeps the join in that order).
_SINCE = Statement(
    f"""
    SELECT o.seq, {_NEWS_OF_TRIAL}
    FROM orchestrator.trial o
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    CROSS JOIN LATERAL (
        SELECT q.trial_id, q.number, q.state FROM trials q
            WHERE q.trial_id = o.optuna_trial_id OFFSET 0
    ) AS q
    WHERE o.study_id = (SELECT CAST(:study_id AS int))
        AND o.seq > (SELECT CAST(:cursor AS bigint))
            AND o.seq < (SELECT CAST(9223372036854775807 AS bigint))
    ORDER BY o.seq
    """
)
# A trial without `created_seq` is older than the column, and so than any position that was written
# down.
_AT = Statement(
    f"SELECT o.seq, {_NEWS_OF_TRIAL} {_OURS} AND coalesce(o.created_seq, 0) <= :position ORDER "
    "BY q.number"
)
_OF = Statement(f"SELECT {_WITH_ASK} {_OURS} AND o.number = :number")
_RUNNING = Statement(
    f"SELECT {_NEWS_OF_TRIAL} {_OURS} AND o.state IN ('PREPARED', 'RUNNING') ORDER BY q.number"
)
_FOREIGN = Statement(
    f"""
    SELECT {_NEWS_OF_TRIAL}
    FROM trials q LEFT JOIN orchestrator.cell l ON false
    WHERE q.study_id = :study_id AND q.state IN ('COMPLETE', 'PRUNED', 'FAIL')
        AND q.number <> ALL(CAST(:but AS int[]))
        AND NOT EXISTS (SELECT FROM orchestrator.trial o WHERE o.optuna_trial_id = q.trial_id)
    ORDER BY q.number
    """
)
_PRIORS = Statement(
    """
    SELECT i.prior FROM orchestrator.prior i
    WHERE i.study_id = :study_id AND i.source = ANY(CAST(:sources AS text[]))
    ORDER BY array_position(CAST(:sources AS text[]), i.source)
    """
)
_SOURCE = Statement(
    r"""
    SELECT p.study_id, s.spec,
        (SELECT json_agg(CAST(d.direction AS text) ORDER BY d.objective)
            FROM study_directions d WHERE d.study_id = p.study_id) AS directions,
        (SELECT a.value_json FROM study_system_attributes a
            WHERE a.study_id = p.study_id AND a.key = 'study\:metric_names') AS metrics
    FROM studies p LEFT JOIN orchestrator.study s ON s.study_id = p.study_id
    WHERE p.study_name = :name
    """
)
_NAMES = Statement("SELECT p.study_name FROM studies p")
_NEWEST_STAGE = Statement(
    """
    SELECT p.study_name FROM orchestrator.chain k
    JOIN orchestrator.stage g ON g.chain_id = k.chain_id
    JOIN studies p ON p.study_id = g.study_id
    WHERE k.name = :name ORDER BY g.ordinal DESC LIMIT 1
    """
)
_FINISHED = Statement(
    f"""
    SELECT {_NEWS_OF_TRIAL}
    FROM trials q LEFT JOIN orchestrator.cell l ON false
    WHERE q.study_id = :study_id AND q.state IN ('COMPLETE', 'PRUNED', 'FAIL')
    ORDER BY q.number
    """
)
