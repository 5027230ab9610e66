"""Where a worker's trials come from: claimed, given their parameters, and one prepared ahead while
another one trains.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.config import WorkerConfig
from orchestrator.errors import LeaseLostError, StoreUnavailableError
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.model import Suggestion, TrialNews
from orchestrator.store import Choice, Claim, Place, Store, StudyRow, Undecided
from orchestrator.worker.contact import Contact
from orchestrator.worker.pace import Pace
from orchestrator.worker.shutdown import Drain, Draining
from orchestrator.worker.studies import Served, Serving

ASKS = 3
"""How often a sampler is asked for one trial, at most; the last time under the study's lock."""
BRIEF_S = 4.0
"""Between shorter trials the connection is kept."""
_LOOK_EVERY_S = 2.0  # at the list of studies, while they have trials
_DRAW = ("tpe", "nsga2")  # of these, those that draw: told the same they hardly ever say the same


class Claiming:
    """The trials of one worker, one after the other.

    Args:
        between: done before each look for a trial; it may raise `StoreUnavailableError`.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        contact: Contact,
        draining: Draining,
        serving: Serving,
        between: Callable[[], None],
        place: Place,
    ) -> None:
        self._store = store
        self._settings = settings
        self._contact = contact
        self._draining = draining
        self._serving = serving
        self._place = place
        self._between = between
        self._unsure = False
        self._rows: list[StudyRow] = []
        self._look_at = 0.0
        self._prepared: Claim | None = None
        self._prepare_again_at = 0.0
        self._paces: defaultdict[int, Pace] = defaultdict(Pace)

    def next(self) -> Claim | None:
        """The trial to run now, None if there is none; it is still to be created if it has no
        number.

        Raises:
            StoreUnavailableError: the database does not answer and the worker was told to end.
        """
        prepared, self._prepared = self._prepared, None
        # whether it was created is not known: back with it
        if prepared is not None and prepared.number is None:
            self._give_back(prepared, Drain.FINISH)
        elif prepared is not None and self._begun(prepared, Drain.FINISH):
            return replace(prepared, begun=True)
        return self._contact.insist(self._claim, until=Drain.FINISH)

    def begun(self, claim: Claim) -> Claim | None:
        """The claim of a trial that `next` returned, created and begun; None if it may not begin,
        and was given back.

        Raises:
            LeaseLostError: the trial is another's.
        """
        if claim.begun:
            return claim
        if claim.number is not None:  # taken over from the worker that had prepared it
            return replace(claim, begun=True) if self._begun(claim, Drain.NOW) else None
        made = self._contact.insist(lambda: self._timed_create(claim), until=Drain.NOW)
        crash_step("after-create")
        if not made.begun:  # by a call that was to prepare it, and whose answer was lost
            return replace(made, begun=True) if self._begun(made, Drain.NOW) else None
        return made

    def prepare(self, running: Claim, ran_s: float, *, last: bool) -> float:
        """Prepares the next trial while `running` runs, if that pays and it is time to. Nothing of
        it is ever waited for.

        What is prepared is known to all, like a running trial, but no attempt of it counts until it
        begins. Another worker that has nothing to do may take it over.

        Args:
            running: the trial that runs.
            ran_s: how long it has run.
            last: no trial is to follow.

        Returns:
            Seconds after which to call this again, at the latest.
        """
        if last or self._draining.how != Drain.NO or self._contact.halted_at is not None:
            self.give_back()
            return math.inf
        prepare_at = self._prepare_at(running.study_id)
        if prepare_at is None or not (self._prepared is None or self._prepared.number is None):
            return math.inf
        now = time.monotonic()
        left = max(prepare_at - ran_s, self._prepare_again_at - now)
        if left > 0:
            return left
        # should there be nothing: no connection is held for it
        self._prepare_again_at = now + self._settings.heartbeat_s
        try:
            self._prepare(running)
        except StoreUnavailableError as error:
            self._contact.lost(error)
        return self._settings.heartbeat_s

    def ran(self, claim: Claim, seconds: float) -> None:
        """Tells how long a trial ran: the shorter they are, the more it pays to prepare."""
        pace = self._paces[claim.study_id]
        pace.ran(seconds)
        self._contact.brief = pace.usual_s < BRIEF_S
        self._prepare_again_at = 0.0

    def give_back(self) -> None:
        """Gives back what was prepared, now if the database answers, else when the
        worker leaves.
        """
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            try:
                self._store.ledger.release(prepared, "prepared and not begun")
            except StoreUnavailableError as error:
                self._unsure = True  # the next claim, or renewal, gives back what this could not
                self._contact.lost(error)
            self._contact.gave(prepared)

    # ------------------------------------------------------------------------------------ the parts

    def _begun(self, claim: Claim, until: Drain) -> bool:
        ledger = self._store.ledger
        begun = self._contact.insist(
            lambda: ledger.start(claim, self._contact.lease, self._place), until=until
        )
        # the study was paused, or another worker took the trial over: then there is nothing to give
        # back
        if not begun:
            self._give_back(claim, until)
        return begun

    def _give_back(self, claim: Claim, until: Drain) -> None:
        self._contact.insist(
            lambda: self._store.ledger.release(claim, "prepared and not begun"), until=until
        )
        self._contact.gave(claim)

    def _claim(self, running: Claim | None = None) -> Claim | None:
        """The next trial of the first active study that has one and whose objective runs here."""
        if self._unsure:
            why = "its claim was lost on the way to the worker"
            self._store.ledger.give_back_held(self._contact.lease, why, but=self._contact.held)
            self._unsure = False
        self._contact.sweep()
        if running is None:  # it may take as long as the database is away
            self._between()
        if time.monotonic() >= self._look_at:
            self._rows = self._store.reads.studies(self._settings.studies, active_only=True)
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            self._serving.announce(self._rows)
            if running is None:
                self._serving.keep_only(self._rows)
        for row in self._rows:
            # it comes next, and is imported when nothing runs
            if running is not None and not self._serving.is_ready(row):
                return None
            if self._draining.how == Drain.NO and (running is not None or self._serving.ready(row)):
                self._unsure = True  # until there is an answer
                claim = self._claim_of(self._serving.study(row.study_id), ahead=running is not None)
                self._unsure = False
                if claim is not None:
                    self._contact.took(claim)
                    crash_step("after-claim")
                    return claim
        self._look_at = 0.0
        return None

    def _claim_of(self, served: Served, *, ahead: bool) -> Claim | None:
        """The next trial of one study; where its allocation is adaptive the model chooses the cell
        of a ticket without one.
        """
        ledger, study_id = self._store.ledger, served.row.study_id
        adaptive = served.spec.allocation == "adaptive"
        known = served.cursor if served.informed else None
        served.look_for_foreign(self._store)
        likely = served.likely_cells() if adaptive else ()
        asked: dict[str, Any] = {
            "adaptive": adaptive,
            "likely": likely,
            "ahead": ahead,
            "launched": served.row.launched_at,
        }
        claim = ledger.claim_one(self._contact.lease, study_id, self._place, **asked, known=known)
        if isinstance(claim, Undecided):
            served.take_in(*claim.news or ([], served.cursor))
            cell, why = served.search.choose_cell(
                claim.cells, ticket=claim.ordinal, retry=claim.failures
            )
            choice = Choice(cell, {**why, "position": served.cursor})
            claim = ledger.claim_one(
                self._contact.lease, study_id, self._place, choice, **asked, known=served.cursor
            )
        if not isinstance(claim, Claim):
            return None
        served.take_in(*claim.news or ([], served.cursor))
        return replace(claim, news=None)

    def _timed_create(self, claim: Claim) -> Claim:
        # of the try that succeeds: an outage says nothing of how long it takes
        since = time.monotonic()
        made = self._create(claim, start=True)
        self._paces[claim.study_id].prepared(time.monotonic() - since)
        return made

    def _create(self, claim: Claim, *, start: bool) -> Claim:
        """Asks the sampler for this cell, knowing what the claim told, and creates the Optuna
        trial.

        Where others have created trials meanwhile that make a difference, they are learnt and the
        sampler is asked again, so that no two suggest alike; should that happen `ASKS` times, the
        last ask is under the study's lock, where others wait.
        """
        served, ledger = self._serving.study(claim.study_id), self._store.ledger

        def suggest(asks: int) -> Suggestion:
            suggestion = served.suggest(claim, asks)
            crash_step("after-ask")
            return suggestion

        def learn_and_suggest(news: list[TrialNews], position: int) -> Suggestion:
            served.take_in(news, position)
            return suggest(ASKS)

        if not served.current:
            served.learn(self._store)
        alike = served.spec.sampler.name in _DRAW
        for asks in range(1, ASKS):
            known = served.cursor if served.learns else None
            created = ledger.create(
                claim,
                suggest(asks),
                self._contact.lease,
                self._place,
                known=known,
                alike=alike,
                start=start,
            )
            if created is not None:
                return created
            served.learn(self._store)
        created = ledger.create(
            claim,
            learn_and_suggest,
            self._contact.lease,
            self._place,
            known=served.cursor,
            start=start,
        )
        assert created is not None
        return created

    def _prepare_at(self, study_id: int) -> float | None:
        """So many seconds into a trial the next one is prepared: at once where nothing is learnt;
        None: never.
        """
        if not self._settings.prefetch:
            return None
        return self._paces[study_id].prepare_at() if self._serving.study(study_id).informed else 0.0

    def _prepare(self, running: Claim) -> None:
        since = time.monotonic()
        claim = self._prepared or self._claim(running)
        if claim is None:
            return
        self._prepared = claim
        try:
            self._prepared = self._create(claim, start=False)
        except LeaseLostError as lost:
            logger.debug("%s", lost)
            self._contact.gave(claim)
            self._prepared = None
        self._paces[claim.study_id].prepared(time.monotonic() - since)
