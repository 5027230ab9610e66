"""The loop of `launch`: shows the study, sweeps, replaces workers, forwards signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

from orchestrator import config, search, signals
from orchestrator.cli import screen
from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.following import Following, read_running
from orchestrator.cli.local_workers import LocalWorkers
from orchestrator.cli.opening import announcement
from orchestrator.cli.running import Running
from orchestrator.errors import StoreUnavailableError
from orchestrator.model import StudySpec
from orchestrator.store import is_braked
from orchestrator.worker.failover import Failover
from orchestrator.worker.maintenance import Maintenance

if TYPE_CHECKING:
    from orchestrator.store import Launched, Progress, Store, StudyRow
    from orchestrator.worker.notifying import Notifier

FOLLOW_S: Final = 0.5
"""Pause between two rounds of the loop."""
_SHARE_OF_READING: Final = 0.1
"""Largest share of the time spent reading progress: a very large study is read less often."""


class FollowedStudy:
    """The study of this launch, as the database has it.

    `row` changes if it had to be launched again, as `launch_again` does.
    """

    def __init__(
        self,
        call: Call,
        store: Store,
        row: StudyRow,
        spec: StudySpec,
        view: screen.View,
        failures: Failures,
        launch_again: Callable[[Store], Launched] | None = None,
    ) -> None:
        self.row = row
        self.store = store
        self.view = view
        self._call = call
        self._spec = spec
        self._failures = failures
        self._launch_again = launch_again or self._launch
        self._failover = Failover(store)
        self._unsure = False
        self._check_reports = config.has_pruner(spec) and not config.never_prunes(spec)
        self._check_bounds = bool(spec.bounds)
        self._failed = 0
        self._news = 0
        self._revision = spec.revision
        self._launched_at = row.launched_at

    def keep_launched(self) -> StudyRow:
        """The study's row; launches it again if another server answers that has lost it."""
        server = self.store.reads.server()
        self._unsure = self._unsure or self._failover.changed(server)
        self._note_failover(self._failover.note(server))
        if self._unsure:
            if not any(map(self._is_launched, self.store.reads.studies())):
                launched = self._launch_again(self.store)
                self.row = self.store.reads.find(self._spec.name)
                self._revision = self.store.reads.spec(self.row.study_id).revision
                self._launched_at = self.row.launched_at
                self._failures.reset(self.row)
                text = announcement(self._call, self.store, self._spec, launched)
                self.view.say(f"the database had lost this launch; {text}")
            self._unsure = False
        return self.row

    def _launch(self, store: Store) -> Launched:
        # what the database has lost may have been a revision of the study
        return store.studies.launch(self._spec, search.extension)

    def progress(self) -> Progress:
        """Reads where the study stands.

        Prints the trials that failed since the last call, what another launch has changed, and a
        warning if the pruner cannot act or a result lies outside the study's bounds.
        """
        progress = self.store.reads.progress(
            self.row,
            maximize=self._spec.directions[0] == "maximize",
            most=self.view.most_cells,
        )
        if progress.news < self._news:
            self._note_failover(self._failover.note(self.store.reads.server(), behind=True))
        if progress.launched_at not in (None, self._launched_at):
            self._launched_at = progress.launched_at
            self._tell_of_revision()
        if self._check_bounds and progress.news > self._news:
            self._warn_of_bounds(after=self._news)
        self._news = progress.news
        if progress.failed != self._failed:
            self._failures.show(self.view)
            self._failed = progress.failed
        if self._check_reports and progress.best is not None:
            self._check_reports = False
            reported = self.store.reads.reported(self.row.study_id)
            if mute := config.nothing_to_judge(self._spec, reported):
                self.view.say(mute)
        return progress

    def _tell_of_revision(self) -> None:
        revision = self.store.reads.spec(self.row.study_id).revision
        if revision == self._revision:
            return
        self._revision = revision
        last = self.store.reads.revisions(self.row.study_id)[-1]
        changes = "".join(f"\n  changed {change}" for change in last.changes)
        self.view.say(
            f"study {self.row.name} was changed by another launch: revision {revision}{changes}"
        )

    def _warn_of_bounds(self, after: int) -> None:
        trial = self.store.reads.out_of_bounds(self.row.study_id, self._spec.bounds, after=after)
        if trial is None:
            return
        self._check_bounds = False
        if warning := self._spec.out_of_bounds(trial.number, trial.values or ()):
            self.view.say(warning)

    def _is_launched(self, found: StudyRow) -> bool:
        same = (found.study_id, found.created_at) == (self.row.study_id, self.row.created_at)
        return same and found.launched_at >= self.row.launched_at

    def _note_failover(self, why: str | None) -> None:
        if why is not None:
            self.view.say(why)
            self._failures.reset(self.row)  # their numbers may now belong to other trials
            self._failed = 0


def follow(
    followed: FollowedStudy,
    workers: LocalWorkers,
    following: Following,
    notifier: Notifier | None = None,
) -> tuple[StudyRow, bool]:
    """Shows the study until it is finished or has paused itself; True if the user ended it earlier.

    Args:
        notifier: tells people what has happened; None: nobody is told.

    Returns:
        The study's row, and whether the user interrupted.
    """
    store, view = followed.store, followed.view
    maintenance = Maintenance(store, 1.0, notifier)
    spent, silent, next_read = 0, False, 0.0
    running, note = Running(), None

    with _forwarded_signals(workers, view) as received, view:
        while True:
            try:
                following.row = followed.keep_launched()
                maintenance.sweep()
                progress, began = None, time.monotonic()
                if began >= next_read:
                    progress = followed.progress()
                    running = read_running(store, followed.row.study_id)
                    note = following.waits_for(progress, workers.pids)
                    took = time.monotonic() - began
                    next_read = time.monotonic() + took / _SHARE_OF_READING
                following.check(progress, own=workers.pids)
                store.rest()
            except StoreUnavailableError as error:
                maintenance.lost_contact()
                if not silent:
                    view.say(f"{error}; trying again")
                silent = True
                store.revive()
            else:
                silent = False
                if progress is not None:
                    view.update(progress, running, note)
                    study = progress.study
                    braked = is_braked(study.state, study.reason) and not progress.running
                    if study.state == "FINISHED" or braked:
                        return followed.row, False
                    spent = progress.spent

            if workers.all_gone and (received or workers.done):
                return followed.row, bool(received)
            workers.replace_dead(spent)
            time.sleep(FOLLOW_S)


@contextmanager
def _forwarded_signals(workers: LocalWorkers, view: screen.View) -> Iterator[list[int]]:
    """Forwards the signals of `signals.ENDING` to this launch's workers.

    Yields a list of those received.
    """
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        still_running = not workers.all_gone
        workers.signal(signal.Signals(number))
        if number == signal.SIGHUP:
            _leave_terminal()
        elif number == signal.SIGINT and len(received) == 1 and still_running:
            view.say(
                "ending: what runs is finished first; press Ctrl-C again to give it back "
                "at once. The study stays."
            )

    before = signals.handle(forward)
    try:
        yield received
    finally:
        signals.restore(before)


def _leave_terminal() -> None:
    """Sends further output to /dev/null if the terminal is gone: writing to it would fail."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
