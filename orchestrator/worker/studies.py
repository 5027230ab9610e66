"""The studies a worker can serve: each with its spec, its sampler, and a process that imported its
objective.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.config import WorkerConfig, never_prunes
from orchestrator.devices import describe
from orchestrator.errors import (
    ConfigError,
    LeaseLostError,
    StoreUnavailableError,
    did_you_mean,
)
from orchestrator.logs import logger
from orchestrator.measurement import Narrowed, functions_of, probe_key
from orchestrator.model import (
    ASK_KEY,
    JSONValue,
    StudySpec,
    Suggestion,
    TrialNews,
    span_label,
    value_label,
)
from orchestrator.prior import Prior
from orchestrator.runner import Runner, check_allowed, check_probe_allowed, source_digest
from orchestrator.store import MOST_CHOICES, Choice
from orchestrator.worker.contact import Contact, EndRequestedError
from orchestrator.worker.device_slot import HeldSlot

if TYPE_CHECKING:
    from orchestrator.search import Search
    from orchestrator.store import Store, StudyRow, Ticket, Undecided

IMPORT_AGAIN_S = 30.0
FOREIGN_EVERY_S = 10.0
MISSING_EVERY_S = 300.0
_MOST_FOREIGN = 200
_MOST_WHY = 1000  # characters of a reason that others read
_LEARNING_SAMPLERS = ("tpe", "gp", "nsga2")  # what they suggest depends on other trials
LIKELY = 3 * MOST_CHOICES // 4
"""This many of the cells that an allocation chooses among are the best so far, the others those
with the fewest tickets.
"""


@dataclass
class Served:
    """A study as it was last launched, the sampler fed with its news, the runner of its objective.

    `cursor` is how far its news was read, `foreign` the trials of others that the sampler knows,
    `foreign_at` when they were read. `current` is false if all of that has to be read again.
    """

    row: StudyRow
    spec: StudySpec
    search: Search
    runner: Runner
    cursor: int = 0
    foreign: set[int] = field(default_factory=set)
    foreign_at: float = 0.0
    current: bool = True
    priors: Sequence[Prior] = ()
    """What it learns from other studies."""
    probe_keys: Mapping[str, str] = field(default_factory=dict)
    """What the study's probes are cached by, see `measurement.probe_key`."""
    counts_from: int = 0
    """The number of the first trial that ``stop_when.patience`` counts."""

    def forget(self) -> None:
        """Forgets what was read, because the database may have gone back in time; all of it is read
        again.
        """
        from orchestrator.search import Search

        self.search = Search(self.spec, counts_from=self.counts_from)
        self.search.warm_start(self.priors)
        self.cursor, self.foreign, self.foreign_at = 0, set(), 0.0
        self.current = not self.informed

    @property
    def learns(self) -> bool:
        """Whether its sampler learns from other trials."""
        return self.spec.sampler.name in _LEARNING_SAMPLERS

    @property
    def informed(self) -> bool:
        """Whether parameters or cells are chosen by what is known of other trials."""
        return (
            self.learns
            or self.spec.allocation == "adaptive"
            or self.spec.budget.confirm > 0
            or self.spec.stop_when.on
        )

    def learn(self, store: Store) -> None:
        """Feeds the sampler with the news since the last time.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        self.take_in(*store.news.since(self.row.study_id, self.cursor))
        self.look_for_foreign(store)

    def look_for_foreign(self, store: Store) -> None:
        """Feeds the sampler with trials that others added to the study, at most every
        `FOREIGN_EVERY_S`.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        if time.monotonic() - self.foreign_at >= FOREIGN_EVERY_S:
            foreign = store.news.foreign(self.row.study_id, self.foreign)
            self.foreign |= {t.number for t in foreign}
            self.foreign_at = time.monotonic()
            self.search.feed(foreign)

    def take_in(self, news: list[TrialNews], position: int) -> None:
        """Feeds the sampler with news up to `position`."""
        self.search.feed(news)
        self.cursor, self.current = position, True

    def declared(self, values: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
        """A trial's values of grid and search, without those that its objective asked for."""
        return {name: value for name, value in values.items() if self.spec.declares(name)}

    def likely_cells(self) -> list[int]:
        """The best cells so far, for an allocation to choose from if the grid is too large to
        consider all of it.
        """
        return self.search.likely_cells(LIKELY) if self.spec.n_cells > MOST_CHOICES else []

    def choose(self, undecided: Undecided) -> Choice | None:
        """The cell of a ticket that has none, or the trial that it repeats; None if the cell with
        the fewest tickets gets it.
        """
        known = {"position": self.cursor}
        if undecided.confirms:
            repeated = self.search.confirm(
                undecided.cells,
                ticket=undecided.ordinal,
                retry=undecided.failures,
                running=undecided.confirming,
                confirmed=undecided.confirmed,
            )
            if repeated is not None:
                cell, number, why = repeated
                return Choice(cell, {**why, **known}, number, len(undecided.confirmed))
        if self.spec.allocation != "adaptive":
            return None
        cell, why = self.search.choose_cell(
            undecided.cells, ticket=undecided.ordinal, retry=undecided.failures
        )
        return Choice(cell, {**why, **known})

    def end_early(self, store: Store, undecided: Undecided) -> bool:
        """Ends the study, or closes cells of it, if there have been enough trials by `stop_when`;
        whether that was done.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        if not self.spec.stop_when.on:
            return False
        reasons = self.search.enough(undecided.cells)
        study_id, launched = self.row.study_id, self.row.launched_at
        if None in reasons:
            # The last tickets confirm, until there is nothing to confirm.
            confirm = 0 if undecided.confirms else self.spec.budget.confirm
            return store.stopping.end_study(study_id, reasons[None], launched, confirm=confirm)
        of_cells = {cell: reason for cell, reason in reasons.items() if cell is not None}
        return bool(of_cells) and store.stopping.settle_cells(study_id, of_cells, launched)

    def suggest(self, ticket: Ticket, asks: int) -> Suggestion:
        """Parameters for the ticket, with what `orchestrator replay` needs to suggest them again;
        `asks` counts the tries.
        """
        given = self.declared(ticket.fixed or {})
        narrowed = Narrowed.by(ticket.measurements, self.spec, ticket.cell_values)
        given = {**narrowed.fixed, **given}
        bounds = {path: limits for path, limits in narrowed.bounds.items() if path not in given}
        suggestion = self.search.ask(
            ticket.cell_values,
            ticket=ticket.ticket,
            retry=ticket.failures,
            given=given,
            bounds=bounds,
        )
        knowledge = {"position": self.cursor, "foreign": sorted(self.foreign)[:_MOST_FOREIGN]}
        ask = {"ticket": ticket.ticket, "retry": ticket.failures, "given": given, "asks": asks}
        if bounds:
            ask["bounds"] = {path: list(limits) for path, limits in bounds.items()}
        if self.spec.warm_start:
            ask["warm_start"] = list(self.spec.warm_start)
        study = {"study_seed": self.spec.seed, "sampler": asdict(self.spec.sampler)}
        attrs = dict(suggestion.system_attrs)
        attrs[ASK_KEY] = {**attrs.get(ASK_KEY, {}), **knowledge, **ask, **study}
        if later := {
            name: value for name, value in (ticket.fixed or {}).items() if name not in given
        }:
            # Optuna's `enqueue_trial` leaves it there too, for when the objective asks for it.
            from orchestrator.search import FIXED_KEY

            attrs[FIXED_KEY] = later
        return replace(suggestion, system_attrs=attrs)


class Serving:
    """The studies of one worker under one lease; their processes end with the block.

    Args:
        command: turns words such as ``stop study.name=digits`` into a command line, for messages.
        device: what their trials run on.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        contact: Contact,
        command: Callable[..., str],
        device: HeldSlot,
    ) -> None:
        self._store = store
        self._settings = settings
        self._contact = contact
        self._command = command
        self._served: dict[int, Served] = {}
        self._unservable: dict[tuple[int, datetime], float] = {}
        self._refusals: dict[int, tuple[int, str]] = {}
        self._refusals_written: dict[int, tuple[int, str]] = {}
        self._announced: set[tuple[int, datetime]] = set()
        self._missing_at = 0.0
        self._anew = contact.anew
        self._device = device

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep_only([])

    def study(self, study_id: int) -> Served:
        """A study that `make_ready` returned True for; what was read of it is dropped first if
        another server answers.
        """
        self.keep_current()
        return self._served[study_id]

    def keep_current(self) -> None:
        """Forgets what was read of all studies if another server answers than before."""
        if self._anew != self._contact.anew:
            self._anew = self._contact.anew
            for served in self._served.values():
                served.forget()

    def is_ready(self, row: StudyRow) -> bool:
        """Whether this launch of the study can be served now; imports and writes nothing."""
        served = self._served.get(row.study_id)
        return served is not None and served.row.launched_at == row.launched_at

    def keep_only(self, rows: Collection[StudyRow]) -> None:
        """Ends the processes of all other studies."""
        ids = {row.study_id for row in rows}
        for study_id in self._served.keys() - ids:
            self._served.pop(study_id).runner.close()
        for study_id in self._refusals.keys() - ids:
            del self._refusals[study_id]

    def look_for_missing(self) -> None:
        """Logs which of `worker.studies` are not in the database; at most every `MISSING_EVERY_S`.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        wanted = self._settings.studies
        if wanted is None or time.monotonic() < self._missing_at:
            return
        self._missing_at = time.monotonic() + MISSING_EVERY_S
        names = [row.name for row in self._store.reads.studies()]
        for name in wanted:
            if name not in names:
                logger.warning(
                    "worker.studies: the database has no study %s%s; waiting for its launch",
                    value_label(name),
                    did_you_mean(name, names),
                )

    def announce(self, rows: Collection[StudyRow]) -> None:
        """Logs which studies are served, once per launch of each: how old the launch is, and
        whether nobody follows it.
        """
        for row in rows:
            if (row.study_id, row.launched_at) in self._announced:
                continue
            self._announced.add((row.study_id, row.launched_at))
            alone = (
                ""
                if row.followed
                else (
                    "; no launch follows it, and "
                    f"'{self._command('stop', f'study.name={row.name}')}' ends it"
                )
            )
            logger.info(
                "serves study %s, launched %s ago%s", row.name, span_label(row.launched_s), alone
            )

    def make_ready(self, row: StudyRow) -> bool:
        """Imports the study's objective and reads its history, unless that is done already; returns
        whether this host can serve it.

        If it cannot, that is logged and written to the database once, and tried again later. Also
        False if the worker is told to end during the import.

        Raises:
            LeaseLostError: the worker was evicted.
            StoreUnavailableError: the database does not answer.
        """
        key = (row.study_id, row.launched_at)
        able = False
        if time.monotonic() >= self._unservable.get(key, 0.0):
            try:
                self._current(row).runner.check(self._contact.keep_on)
                able = True
                self._unservable.pop(key, None)
                self._refusals.pop(row.study_id, None)
            except EndRequestedError:
                return False
            except (LeaseLostError, StoreUnavailableError):
                raise
            except Exception as error:  # noqa: BLE001 - made by another version, a sampler's package missing: others go on
                self._refuse(row, error)
        if self._refusals != self._refusals_written:
            self._store.fleet.refuse(self._contact.lease, self._refusals)
            self._refusals_written = dict(self._refusals)
        return able

    def _refuse(self, row: StudyRow, error: Exception) -> None:
        key = (row.study_id, row.launched_at)
        if row.study_id in self._served:
            self._served.pop(row.study_id).runner.close()
        expected = isinstance(error, ConfigError)
        why = str(error) if expected else f"{type(error).__name__}: {error}"
        if key not in self._unservable:
            logger.error(
                "not claiming from study %s: %s",
                row.name,
                why,
                exc_info=None if expected else error,
            )
        self._unservable[key] = time.monotonic() + IMPORT_AGAIN_S
        self._refusals[row.study_id] = (row.revision, value_label(why)[:_MOST_WHY])

    def _current(self, row: StudyRow) -> Served:
        served = self._served.get(row.study_id)
        if served is None or served.row.launched_at != row.launched_at:
            if served is not None:
                self._served.pop(row.study_id).runner.close()
            self._contact.say(f"importing the objective of {row.name}")
            spec = self._store.reads.spec(row.study_id)
            if (idle := never_prunes(spec)) is not None and (
                row.study_id,
                row.launched_at,
            ) not in self._unservable:
                logger.warning("study %s: %s", row.name, idle)
            check_allowed(spec.objective, self._settings.allow_targets)
            for name, probe in spec.probes.items():
                check_probe_allowed(name, probe, self._settings.allow_targets)
            # What follows is done while the objective is imported, and no lock is held for it.
            runner = self._runner(spec)
            runner.begin()
            try:
                from orchestrator.search import Search  # slow, for it imports Optuna

                first = 0
                if spec.stop_when.patience is not None:
                    first = self._store.stopping.counts_from(row.study_id)
                search = Search(spec, counts_from=first)
                served = self._served[row.study_id] = Served(
                    row, spec, search, runner, probe_keys=_probe_keys(spec), counts_from=first
                )
                if spec.warm_start:
                    served.priors = self._store.news.priors(row.study_id, spec.warm_start)
                    served.search.warm_start(served.priors)
                self._store.probes.suit(self._contact.lease, row.study_id, served.probe_keys)
            except BaseException:
                runner.close()
                raise
            # Not again and again where the objective cannot be imported.
            if (row.study_id, row.launched_at) not in self._unservable:
                if served.informed:
                    with ThreadPoolExecutor(1) as beside:  # while the database answers
                        beside.submit(served.search.load)
                        served.learn(self._store)
                served.search.rehearse()
        return served

    def _runner(self, spec: StudySpec) -> Runner:
        return runner_for(spec, self._device, self._silence_s(spec.runner.grace_s))

    def _silence_s(self, grace_s: float) -> float:
        """How long the worker may be silent before its child is ended: the child must be gone when
        the lease runs out, because another worker may then take the device.
        """
        ttl_s = self._settings.lease_ttl_s
        return max(ttl_s / 3, ttl_s - self._settings.heartbeat_s - grace_s - 1.0)


def _probe_keys(spec: StudySpec) -> dict[str, str]:
    """By name, what the study's probes are cached by."""
    return {
        name: probe_key(
            probe,
            source_digest(
                [spec.objective, *({"_target_": function} for function in functions_of(probe))]
            ),
        )
        for name, probe in spec.probes.items()
    }


def runner_for(spec: StudySpec, held: HeldSlot, silence_s: float) -> Runner:
    """A runner of the study's objective with its `runner.*` settings, on the held device.

    Args:
        silence_s: how long this process may be stopped or gone before a child of it is ended.
    """
    minutes = spec.runner.max_runtime_min
    return Runner(
        spec.objective,
        isolation=spec.runner.isolation,
        start=spec.runner.start,
        env=held.environment,
        threads=held.threads,
        grace_s=spec.runner.grace_s,
        max_runtime_s=None if minutes is None else minutes * 60,
        silence_s=silence_s,
        held=held.descriptors,
        log_limit_bytes=int(spec.runner.log_limit_mb * 1_000_000),
        device=describe(held.device),
    )
