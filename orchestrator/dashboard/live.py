"""What the pages may change: in a live study, whose rows belong to the ledger, only notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bottle import HTTPResponse

from orchestrator.errors import OrchestratorError
from orchestrator.logs import logger
from orchestrator.model import count_label

if TYPE_CHECKING:
    from orchestrator.store import StudyRow
    from orchestrator.store.reads import Reads

View = Callable[..., Any]
_NOTES = frozenset(
    {
        ("PUT", "/api/studies/<study_id:int>/note"),
        ("PUT", "/api/studies/<study_id:int>/<trial_id:int>/note"),
    }
)
_UPGRADE = "/incompatible-rdb-schema"
_ARTIFACTS = "/artifacts/"


class LiveStudies:
    """A Bottle plugin: every route that changes a study or a trial asks the ledger first.

    It works on matched routes, not on paths, so no spelling of a path circumvents it. A route that
    a later optuna-dashboard adds is refused for live studies until it is listed here as harmless.
    """

    name = "live studies"
    api = 2

    def __init__(self, reads: Reads, storage: Any) -> None:
        self._reads = reads
        self._storage = storage

    def apply(self, view: View, route: Any) -> View:
        """Bottle calls this once per route; returns the view to call instead."""
        if route.method == "GET" or (route.method, route.rule) in _NOTES:
            return view
        if route.rule == _UPGRADE:
            return lambda: _refused(
                403, "the tables are upgraded with 'orchestrator db upgrade', not from here"
            )

        def guarded(**ids: Any) -> Any:
            try:
                reason = self._reason(ids.get("study_id"), ids.get("trial_id"))
            except OrchestratorError as error:
                return _refused(503, str(error))
            if reason is None:
                return view(**ids)
            # For some buttons optuna-dashboard shows only that the request failed, not why.
            logger.warning("refused: %s", reason)
            return _refused(409, reason)

        return guarded

    def _reason(self, study_id: int | None, trial_id: int | None) -> str | None:
        """Why neither the study nor the trial may be changed; None if they may."""
        if study_id is None and trial_id is None:
            return None
        number = None if trial_id is None else self._number(trial_id)
        for row in self._reads.studies():
            if (row.study_id == study_id or self._has(row, number, trial_id)) and (
                why := self._live(row)
            ):
                return (
                    f"study {row.name} {why}: until it ends, only notes can be added here;"
                    f" to end it: orchestrator stop study.name={row.name}"
                )
        return None

    def _live(self, row: StudyRow) -> str | None:
        if row.state != "FINISHED":
            return f"is {row.state}"
        running = len(self._reads.trials(row.study_id, live_only=True))
        return f"still has {count_label(running, 'running trial')}" if running else None

    def _number(self, trial_id: int) -> int | None:
        try:
            return int(self._storage.get_trial_number_from_id(trial_id))
        except KeyError:
            return None

    def _has(self, row: StudyRow, number: int | None, trial_id: int | None) -> bool:
        if number is None:
            return False
        try:
            return bool(
                self._storage.get_trial_id_from_study_id_trial_number(row.study_id, number)
                == trial_id
            )
        except KeyError:
            return False


class Downloads:
    """A Bottle plugin: browsers save artifacts as files and never run them in this origin."""

    name = "downloads"
    api = 2

    def apply(self, view: View, route: Any) -> View:
        """Bottle calls this once per route; returns the view to call instead."""
        if not route.rule.startswith(_ARTIFACTS):
            return view

        def download(**ids: Any) -> Any:
            try:
                answer = view(**ids)
            except FileNotFoundError:
                return _refused(404, "the file is not in the paths.artifacts of this dashboard")
            except OSError as error:
                logger.warning("cannot read an artifact: %s", error)
                return _refused(502, "cannot read paths.artifacts; see the dashboard's log")
            if isinstance(answer, HTTPResponse):
                answer.set_header("Content-Disposition", "attachment")
                answer.set_header(
                    "Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'"
                )
            return answer

        return download


def _refused(status: int, reason: str) -> Any:
    return HTTPResponse(json.dumps({"reason": reason}), status, content_type="application/json")
