"""Claims a worker's trials and gives them their parameters; prepares the next one while another one
trains.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.config import WorkerConfig
from orchestrator.errors import LeaseLostError, StoreUnavailableError
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.model import Suggestion, TrialNews
from orchestrator.store import Attempt, Prepared, Probe, Ticket, Undecided
from orchestrator.worker.contact import Contact
from orchestrator.worker.pace import Pace
from orchestrator.worker.shutdown import Drain, Draining
from orchestrator.worker.studies import Served, Serving

if TYPE_CHECKING:
    from orchestrator.store import Choice, Claim, Place, Store, StudyRow

MAX_ASKS = 3
"""A sampler is asked at most this often per trial, the last time under the study's lock."""
_LOOK_EVERY_S = 2.0  # between readings of the list of studies, while they have trials
# These samplers draw at random: with the same data they rarely suggest the same point twice.
_RARELY_ALIKE = ("tpe", "nsga2")


class Claiming:
    """The trials of one worker, one after another.

    Args:
        before_claim: called before each claim while no trial runs, for what must not wait for the
            next trial. It may raise `StoreUnavailableError`.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        contact: Contact,
        draining: Draining,
        serving: Serving,
        before_claim: Callable[[], None],
        place: Place,
    ) -> None:
        self._store = store
        self._settings = settings
        self._contact = contact
        self._draining = draining
        self._serving = serving
        self._place = place
        self._before_claim = before_claim
        self._unsure = False
        self._rows: list[StudyRow] = []
        self._next_look = 0.0
        self._ahead: Claim | None = None
        self._prepare_again_at = 0.0
        self._paces: defaultdict[int, Pace] = defaultdict(Pace)

    def next(self) -> Claim | Probe | None:
        """The trial to run now, prepared or not, to be passed to `begin`; or the probe to measure
        first; None if there is nothing.

        Raises:
            StoreUnavailableError: the database does not answer and the worker was told to end.
        """
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Ticket):  # its trial may or may not have been created: give it back
            self._give_back(ahead, Drain.FINISH)
        elif ahead is not None:
            begun = self._start(ahead, Drain.FINISH) if isinstance(ahead, Prepared) else ahead
            if begun is not None:
                return begun
        return self._contact.insist(self._claim, until=Drain.FINISH)

    def begin(self, claim: Claim) -> Attempt | None:
        """Creates and starts the trial that `next` returned, unless that is done already. None if
        it must not start; then it has been given back.

        Raises:
            LeaseLostError: the trial belongs to another worker.
        """
        if isinstance(claim, Attempt):
            return claim
        if isinstance(claim, Prepared):  # taken over from the worker that had prepared it
            return self._start(claim, Drain.NOW)
        made = self._contact.insist(lambda: self._timed_create(claim), until=Drain.NOW)
        crash_step("after-create")
        # It is only prepared if an earlier call, whose answer was lost, prepared it.
        return made if isinstance(made, Attempt) else self._start(made, Drain.NOW)

    def prepare(self, running: Attempt, ran_s: float, *, last: bool) -> float:
        """Prepares the next trial while `running` runs, if that pays and is due; never waits for
        it.

        Others see a prepared trial as they see a running one, but no attempt of it counts until it
        begins. An idle worker may take it over.

        Args:
            running: the trial that runs.
            ran_s: how long it has run.
            last: no trial follows.

        Returns:
            The number of seconds after which to call this again, at the latest.
        """
        if last or self._draining.how != Drain.NO or self._contact.halted_at is not None:
            self.give_back()
            return math.inf
        prepare_at = self._prepare_at(running.study_id)
        if prepare_at is None or isinstance(self._ahead, Prepared | Attempt):
            return math.inf
        now = time.monotonic()
        left = max(prepare_at - ran_s, self._prepare_again_at - now)
        if left > 0:
            return left
        # If there is nothing to prepare, the next try is a heartbeat away, so that no connection is
        # kept open for it.
        self._prepare_again_at = now + self._settings.heartbeat_s
        try:
            self._prepare(running)
        except StoreUnavailableError as error:
            self._contact.lost(error)
        return self._settings.heartbeat_s

    def ran(self, attempt: Attempt, seconds: float) -> None:
        """Notes how long a trial ran: the shorter trials are, the more it pays to prepare."""
        pace = self._paces[attempt.study_id]
        pace.ran(seconds)
        self._contact.expect(pace.usual_s)
        self._prepare_again_at = 0.0

    def give_back(self) -> None:
        """Gives back what was prepared. If the database does not answer, the next claim, the next
        renewal or the end of the worker does it.
        """
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            try:
                self._store.ledger.release(ahead, "prepared but not begun")
            except StoreUnavailableError as error:
                self._unsure = True
                self._contact.lost(error)
            self._contact.gave(ahead)

    # ------------------------------------------------------------------------------------ the parts

    def _start(self, prepared: Prepared, until: Drain) -> Attempt | None:
        ledger, lease = self._store.ledger, self._contact.lease
        attempt = self._contact.insist(
            lambda: ledger.start(prepared, lease, self._place), until=until
        )
        # The study was paused, or another worker took the trial over: then giving back changes
        # nothing.
        if attempt is None:
            self._give_back(prepared, until)
        return attempt

    def _give_back(self, ahead: Claim, until: Drain) -> None:
        self._contact.insist(
            lambda: self._store.ledger.release(ahead, "prepared but not begun"), until=until
        )
        self._contact.gave(ahead)

    def _claim(self, running: Attempt | None = None) -> Claim | Probe | None:
        """The next trial, or probe, of the first active study that has one and whose objective runs
        here.
        """
        if self._unsure:
            why = "the answer to its claim was lost"
            self._store.ledger.give_back_held(self._contact.lease, why, but=self._contact.held)
            self._unsure = False
        self._contact.sweep()
        if running is None:  # a call may take as long as an outage, and a trial must not wait
            self._before_claim()
        if time.monotonic() >= self._next_look:
            self._rows = self._store.reads.studies(self._settings.studies, active_only=True)
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._serving.announce(self._rows)
            if not self._rows:
                self._serving.look_for_missing()
            if running is None:
                self._serving.keep_only(self._rows)
        for row in self._rows:
            # This study comes next, but its objective is only imported while no trial runs.
            if running is not None and not self._serving.is_ready(row):
                return None
            if self._draining.how == Drain.NO and (
                running is not None or self._serving.make_ready(row)
            ):
                self._unsure = True  # stays so if the answer is lost
                claim = self._claim_of(self._serving.study(row.study_id), ahead=running is not None)
                self._unsure = False
                if claim is not None:
                    self._contact.took(claim)
                    crash_step("after-claim")
                    return claim
        self._next_look = 0.0
        return None

    def _claim_of(self, served: Served, *, ahead: bool) -> Claim | Probe | None:
        """The next trial of one study, or the probe that must come before it. With an adaptive
        allocation, the model chooses the cell of a ticket that has none; for the last
        `budget.confirm` it may choose a trial to repeat. With `stop_when`, such a ticket is not
        taken before what is known says that it is needed.
        """
        ledger, study_id = self._store.ledger, served.row.study_id
        adaptive = served.spec.allocation == "adaptive"
        served.look_for_foreign(self._store)
        confirm = served.spec.budget.confirm
        stops = served.spec.stop_when.on
        likely = served.likely_cells() if adaptive or confirm or stops else ()

        def claim(
            since: int | None,
            choice: Choice | None = None,
            confirm: int = 0,
            adaptive: bool = adaptive,
        ) -> Claim | Probe | Undecided | None:
            return ledger.claim_one(
                self._contact.lease,
                study_id,
                self._place,
                choice,
                adaptive=adaptive,
                confirm=confirm,
                likely=likely,
                ahead=ahead,
                since=since,
                launched=served.row.launched_at,
                keys=served.probe_keys,
                max_attempts=served.spec.runner.max_attempts,
            )

        since = served.cursor if served.informed else None
        claimed = claim(since, confirm=confirm, adaptive=adaptive or stops)
        # What to repeat is chosen again if others have chosen meanwhile, but not for ever.
        for asks in range(1, MAX_ASKS + 1):
            if not isinstance(claimed, Undecided):
                break
            served.take_in(*claimed.news or ([], served.cursor))
            choice = served.choose(claimed)
            repeats = choice is not None and choice.confirms is not None
            if not repeats and served.end_early(self._store, claimed):
                return None
            if choice is not None and asks == MAX_ASKS:
                choice = replace(choice, confirmed=None)
            claimed = claim(served.cursor, choice, confirm if repeats else 0)
        if isinstance(claimed, Undecided):
            return None
        if isinstance(claimed, Ticket) and claimed.news is not None:
            served.take_in(*claimed.news)
        return claimed

    def _timed_create(self, ticket: Ticket) -> Prepared | Attempt:
        # Times only the try that succeeds: an outage says nothing about how long preparing takes.
        since = time.monotonic()
        made = self._create(ticket, start=True)
        self._paces[ticket.study_id].prepared(time.monotonic() - since)
        return made

    def _create(self, ticket: Ticket, *, start: bool) -> Prepared | Attempt:
        """Asks the sampler for parameters in this cell, and creates the Optuna trial.

        If others have created trials meanwhile that matter, the sampler learns of them and is asked
        again, so that no two workers suggest the same. The last of `MAX_ASKS` asks is under the
        study's lock, where others wait.
        """
        served, ledger = self._serving.study(ticket.study_id), self._store.ledger

        def suggest(asks: int) -> Suggestion:
            suggestion = served.suggest(ticket, asks)
            crash_step("after-ask")
            return suggestion

        def learn_and_suggest(news: list[TrialNews], position: int) -> Suggestion:
            served.take_in(news, position)
            return suggest(MAX_ASKS)

        if not served.current:
            served.learn(self._store)
        alike = served.spec.sampler.name in _RARELY_ALIKE
        for asks in range(1, MAX_ASKS):
            since = served.cursor if served.learns else None
            created = ledger.create(
                ticket,
                suggest(asks),
                self._contact.lease,
                self._place,
                since=since,
                alike=alike,
                start=start,
                revision=served.spec.revision,
            )
            if created is not None:
                return created
            served.learn(self._store)
        created = ledger.create(
            ticket,
            learn_and_suggest,
            self._contact.lease,
            self._place,
            since=served.cursor,
            start=start,
            revision=served.spec.revision,
        )
        assert created is not None
        return created

    def _prepare_at(self, study_id: int) -> float | None:
        """How many seconds into a trial the next one is prepared; None: never.

        At once if other trials say nothing about the next one.
        """
        if not self._settings.prefetch:
            return None
        return self._paces[study_id].prepare_at() if self._serving.study(study_id).informed else 0.0

    def _prepare(self, running: Attempt) -> None:
        since = time.monotonic()
        claim = self._ahead or self._claim(running)
        if claim is None or isinstance(claim, Probe):  # ahead no probe is taken
            return
        self._ahead = claim
        try:
            if isinstance(claim, Ticket):
                self._ahead = self._create(claim, start=False)
        except LeaseLostError as lost:
            logger.debug("%s", lost)
            self._contact.gave(claim)
            self._ahead = None
        self._paces[claim.study_id].prepared(time.monotonic() - since)
