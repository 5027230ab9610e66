"""Measures probes: one attempt of one probe in one cell, from its child to what it found in the
database. Read `Probing.run`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.config import WorkerConfig
from orchestrator.devices import torch_device
from orchestrator.errors import (
    ConfigError,
    LeaseLostError,
    OrchestratorError,
    StoreUnavailableError,
)
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.measurement import Measurement, MeasurementError, as_objective, typical_values
from orchestrator.model import (
    Completed,
    Failed,
    Interrupted,
    Outcome,
    cell_label,
    trial_seed,
)
from orchestrator.runner import ArtifactLogged, Job, Running, probe_dir
from orchestrator.worker.attempt import AbandonedError, abandon
from orchestrator.worker.contact import Contact
from orchestrator.worker.device_slot import HeldSlot
from orchestrator.worker.end_requests import EndRequests
from orchestrator.worker.shutdown import Drain, Draining
from orchestrator.worker.studies import Served

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.store import Place, Probe, Store

_MAX_NAME = 255  # characters of an artifact's name
_SEED = 1_000_000_000
"""Added to a cell's ordinal where a trial's seed has its ticket, so that no trial has the same."""


class Probing:
    """Measures the probes that one worker has begun, one after the other, on its device."""

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        contact: Contact,
        draining: Draining,
        device: HeldSlot,
        place: Place,
        runs_dir: Path,
        artifacts: str | None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._ending = EndRequests(draining, contact, settings.drain_s)
        self._contact = contact
        self._device = device
        self._place = place
        self._runs_dir = runs_dir
        self._artifacts = artifacts

    def run(self, served: Served, held: Probe) -> None:
        """Takes a probe from its beginning to its end in the database, or gives it back.

        Raises:
            LeaseLostError: the worker itself was evicted.
        """
        what = f"probe {held.name} of {served.row.name} in {cell_label(held.cell_values)}"
        try:
            if (missing := self._not_here(served, held)) is not None:
                self._finish(held, Measurement(facts={"reason": missing}), 0.0, {}, {})
                return
            self._contact.say(f"probe {held.name} of {served.row.name}")
            again = f" (attempt {held.attempt})" if held.attempt > 1 else ""
            logger.info("%s starts%s", what, again)
            outcome, seconds, facts, artifacts = self._measure(served, held)
            crash_step("after-probe")
            self._deliver(served, held, what, outcome, seconds, facts, artifacts)
        except AbandonedError:
            self._release(held, Interrupted("the worker was told to end"))
        except LeaseLostError as lost:
            logger.warning("%s", lost)
            self._contact.gave(held)
            self._contact.insist(self._contact.renew)  # raises if the worker itself is gone
        finally:
            self._contact.gave(held)

    def _not_here(self, served: Served, held: Probe) -> str | None:
        """Why the probe has nothing to measure in its cell; None if it has."""
        parameter = served.spec.probes[held.name].get("parameter")
        for searched in served.spec.search:
            if searched.path == parameter and not searched.exists_in(held.cell_values):
                return f"{parameter} does not exist in this cell"
        return None

    def _measure(
        self, served: Served, held: Probe
    ) -> tuple[Outcome, float, dict[str, Any], dict[str, Any]]:
        """The outcome of the child, how long it ran in seconds, its facts, its artifacts."""
        job = self._job(served, held)
        if self._device.gpu is not None:
            self._contact.meanwhile(self._device.settle, hurry=abandon)
        since = time.monotonic()
        self._contact.measures()
        try:
            running = served.runner.start(job, self._ending.now)
        except OSError as error:
            reason = f"{self._place.host} cannot write its run directory"
            self._release(held, Interrupted(reason))
            raise OrchestratorError(f"paths.runs={self._place.runs_dir}: {error}") from error
        artifacts: dict[str, Any] = {}
        try:
            while running.outcome is None:
                self._note(running, held, artifacts, self._contact.until_beat(1.0))
                self._contact.beat()
                self._contact.rest()
                self._ending.pass_on(running)
        except BaseException:
            running.terminate()
            raise
        self._note(running, held, artifacts, 0)
        outcome = self._device.verdict(running.outcome, job.run_dir)
        return outcome, time.monotonic() - since, running.facts, artifacts

    def _job(self, served: Served, held: Probe) -> Job:
        spec = served.spec
        values = typical_values(spec, held.cell_values)
        run_dir = probe_dir(
            self._runs_dir, served.row.folder, held.name, held.cell, held.attempt, held.token
        )
        return Job(
            study=served.row.name,
            number=-1,
            attempt=held.attempt,
            seed=trial_seed(spec.seed, _SEED + held.cell, 0),
            device=torch_device(self._device.device),
            params=spec.params,
            values=values,
            contents=spec.contents(values),
            options=spec.options,
            objective=as_objective(spec.probes[held.name]),
            directions=spec.directions,
            metrics=spec.metrics,
            run_dir=run_dir,
            checkpoint_dir=run_dir / "checkpoints",
            resumed=False,
            artifacts=self._artifacts,
            probe=held.name,
        )

    def _note(
        self, running: Running, held: Probe, artifacts: dict[str, Any], wait_s: float
    ) -> None:
        """Keeps the records of artifacts, under names that tell the cells apart: they all become
        the study's.
        """
        for message in running.poll(wait_s):
            crash_step("mid-probe")
            if isinstance(message, ArtifactLogged):
                name = f"{held.name}-cell-{held.cell}-{message.record.filename}"
                record = replace(message.record, filename=name[:_MAX_NAME])
                artifacts[record.artifact_id] = record.to_json()

    def _deliver(
        self,
        served: Served,
        held: Probe,
        what: str,
        outcome: Outcome,
        seconds: float,
        facts: Mapping[str, Any],
        artifacts: Mapping[str, Any],
    ) -> None:
        if isinstance(outcome, Interrupted):
            self._keep(held, artifacts)
            self._release(held, outcome)
            logger.info("%s given back: %s", what, outcome.reason)
            if outcome.lost:
                self._contact.wait(self._settings.poll_s)  # whatever ended it may be at work
            return
        if isinstance(outcome, Completed):
            try:
                measured = self._checked(served, held, outcome)
                closed = self._finish(held, measured, seconds, facts, artifacts)
            except (StoreUnavailableError, LeaseLostError):
                raise
            except (MeasurementError, ConfigError) as error:
                outcome = Failed("value", str(error))
            except OrchestratorError as error:
                outcome = Failed("value", f"the database does not take what it found: {error}")
                artifacts = {}
            else:
                logger.info("%s: %s (%.1f s)", what, measured.label, seconds)
                for cell in closed:
                    logger.warning("%s closes the cell %s for such devices", what, cell)
                return
        self._keep(held, artifacts)
        failed = outcome if isinstance(outcome, Failed) else Failed("value", _PRUNED)
        transient = failed.passes(served.spec.runner.retry_on)
        if transient and self._contact.insist(
            lambda: self._store.probes.retry(held, failed.message.partition("\n")[0]),
            until=Drain.NOW,
        ):
            logger.warning("%s failed and runs again: %s", what, failed.message)
            return
        self._contact.insist(
            lambda: self._store.probes.fail(held, failed.message, seconds, facts), until=Drain.NOW
        )
        logger.warning(
            "%s failed, so its trials have the declared bounds: %s", what, failed.message
        )

    def _checked(self, served: Served, held: Probe, outcome: Completed) -> Measurement:
        """What the probe found.

        Raises:
            MeasurementError: it returned something that cannot be used.
            ConfigError: the sampler cannot use it.
        """
        measured = Measurement.of(outcome.attrs, served.spec, held.cell_values)
        bounds = {p: b for p, b in measured.bounds.items() if p not in measured.fixed}
        served.search.ask(held.cell_values, ticket=0, retry=0, bounds=bounds, given=measured.fixed)
        return measured

    def _finish(
        self,
        held: Probe,
        measured: Measurement,
        seconds: float,
        facts: Mapping[str, Any],
        artifacts: Mapping[str, Any],
    ) -> list[str]:
        return self._contact.insist(
            lambda: self._store.probes.finish(held, measured, seconds, facts, artifacts),
            until=Drain.NOW,
        )

    def _keep(self, held: Probe, artifacts: Mapping[str, Any]) -> None:
        """Records what a probe stored that found nothing: without records nobody finds it."""
        if artifacts:
            self._contact.insist(lambda: self._store.probes.keep(held, artifacts), until=Drain.NOW)

    def _release(self, held: Probe, outcome: Interrupted) -> None:
        self._contact.insist(
            lambda: self._store.probes.release(held, outcome.reason, lost=outcome.lost),
            until=Drain.NOW,
        )


_PRUNED = "it raised TrialPruned; a probe returns what it found"
