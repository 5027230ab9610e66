"""Answers what the objective of one attempt asks for as it runs; only the child waits, never the
worker.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator.errors import LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.model import JSONValue
from orchestrator.runner import Message, Running, StudyQuestion, SuggestQuestion
from orchestrator.worker.contact import Contact
from orchestrator.worker.studies import Served
from orchestrator.worker.unwritten import Unwritten

if TYPE_CHECKING:
    from orchestrator.search import Answers
    from orchestrator.store import Attempt, Store

_AGAIN_S = (0.2, 1.0)
"""Pauses between tries while the database does not answer: the first, and the longest."""


class Questions:
    """The questions of one attempt, for parameters and about the study. Call `serve` after each
    poll, because an answer may have to wait for the database.
    """

    def __init__(
        self, store: Store, contact: Contact, served: Served, attempt: Attempt, unwritten: Unwritten
    ) -> None:
        self._store = store
        self._contact = contact
        self._served = served
        self._attempt = attempt
        self._unwritten = unwritten
        self._answers: Answers | None = None
        self._waiting: SuggestQuestion | StudyQuestion | None = None
        self._again_at = 0.0
        self._pause_s = _AGAIN_S[0]

    def note(self, message: Message) -> None:
        """Keeps the question, if it is one."""
        if isinstance(message, SuggestQuestion | StudyQuestion):
            self._waiting, self._again_at, self._pause_s = message, 0.0, _AGAIN_S[0]

    def serve(self, running: Running) -> None:
        """Answers the pending question, if there is one; if the database does not answer, a later
        call tries again.

        Raises:
            LeaseLostError: the trial belongs to another worker; the question stays unanswered.
        """
        question = self._waiting
        if question is None or running.outcome is not None or time.monotonic() < self._again_at:
            return
        try:
            if isinstance(question, StudyQuestion):
                running.answer_study(question.about, self._about(question.about))
            else:
                self._answer_or_refuse(question, running)
        except StoreUnavailableError as error:
            self._contact.lost(error)
            self._again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _AGAIN_S[1])
            return
        self._waiting = None

    def _about(self, what: str) -> JSONValue:
        return self._store.reads.about(
            what, self._attempt.study_id, self._attempt.number, self._served.spec.directions
        )

    def _answer_or_refuse(self, question: SuggestQuestion, running: Running) -> None:
        try:
            self._answer(question, running)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except (ValueError, TypeError) as error:
            kind = "TypeError" if isinstance(error, TypeError) else "ValueError"
            running.answer_suggest(question.name, None, refused=(kind, str(error)))
        except OrchestratorError as error:  # a value that the database cannot store
            running.answer_suggest(
                question.name, None, refused=("ValueError", f"parameter {question.name!r}: {error}")
            )

    def _answer(self, question: SuggestQuestion, running: Running) -> None:
        answers = self._answers = self._answers or self._begin()
        answer = answers.answer(question.name, question.kind, question.arguments, question.fixed)
        if answer.new is not None:
            check = answers.check_of(answer.new)
            stored = self._store.suggested.add(
                self._attempt, answer.new, answer.value, check_first=check
            )
            answers.keep(stored)
            self._unwritten.suggested[stored.name] = (stored, answer.value)
            # An earlier try stored another value and its answer was lost: that value counts.
            if stored != answer.new:
                answer = answers.answer(
                    question.name, question.kind, question.arguments, question.fixed
                )
            logger.debug("trial %s: %s = %r", self._attempt.number, question.name, answer.value)
        running.answer_suggest(question.name, answer.internal, warnings=answer.warnings)

    def _begin(self) -> Answers:
        """Answers based on what the study knows now; the sampler is asked once per trial for all
        parameters.
        """
        self._served.learn(self._store)
        news = self._store.news.running(self._served.row.study_id)
        self._served.search.feed(news)
        mine = next((item for item in news if item.number == self._attempt.number), None)
        if mine is None:
            raise LeaseLostError(
                f"trial {self._attempt.number} of study {self._attempt.study_id} has ended"
            )
        return self._served.search.answers(
            mine, ticket=self._attempt.ticket, retry=self._attempt.failures
        )
