"""A worker's device slot: offered by what this host has, claimed in the database, fenced by a lock
on this host.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import WorkerConfig
from orchestrator.devices import (
    Device,
    DeviceLock,
    Nvml,
    Occupancy,
    child_environment,
    cpu_scope,
    discover,
    host_identity,
    slot_environment,
    strangers,
    usable_cores,
    usable_memory,
    why_no_gpu,
)
from orchestrator.errors import DeviceError
from orchestrator.logs import logger
from orchestrator.model import Failed, Interrupted, Outcome
from orchestrator.runner.protocol import rundir
from orchestrator.store import SlotOffer

if TYPE_CHECKING:
    from orchestrator.store import Store, WorkerLease

UNLIMITED_CPU_SLOTS = 1024
"""Every worker that a user starts on a CPU is wanted; `worker.slots_per_device` can set a limit."""
FREE_WITHIN_S = 30.0
"""How long the memory of an ended process may take to be freed."""
_CPU_SHARERS = 2


@dataclass(frozen=True)
class HeldSlot(AbstractContextManager["HeldSlot"]):
    """A claimed slot; its lock is released at the end of the block, the slot when the worker ends.

    `threads` is the share of the CPU's cores for a trial, None where nothing limits it; `gpu` tells
    who uses a GPU.
    """

    device: Device
    slot: int
    threads: int | None
    lock: DeviceLock | None
    gpu: Occupancy | None = None

    @property
    def descriptors(self) -> list[int]:
        """What children keep open, so that the device stays locked as long as one of them lives."""
        return [] if self.lock is None else [self.lock.fileno()]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for children: they see this device only, and carry a mark by which
        the slot's processes are recognised.
        """
        return {**child_environment(self.device), **slot_environment(self.device, self.slot)}

    def check(self) -> None:
        """Returns if the device is still there. Cheap enough to call before each claim: the driver
        library is open already.

        Raises:
            DeviceError: The device fell off the bus, or its driver does not answer.
        """
        if self.gpu is not None:
            self.gpu.check()

    def verdict(self, outcome: Outcome, run_dir: Path) -> Outcome:
        """The outcome of an attempt on this device: a failure while the device is gone says nothing
        about the trial.

        Then the result in `run_dir` is replaced as well, because other workers deliver what they
        find there.
        """
        if isinstance(outcome, Failed):
            try:
                self.check()
            except DeviceError as gone:
                outcome = Interrupted(str(gone), lost=True)
                try:
                    rundir.write_result(run_dir, outcome)
                except OSError as error:
                    logger.warning(
                        "%s: could not replace the result of a failed device: %s", run_dir, error
                    )
        return outcome

    def settle(self) -> None:
        """Waits until the device is free for the next attempt, at most `FREE_WITHIN_S`; then a
        warning says what still uses it.

        Raises:
            DeviceError: The GPU does not answer.
        """
        left = self.wait_until_free(FREE_WITHIN_S)
        if left is not None:
            logger.warning("%s after %g s; starting the trial anyway", left, FREE_WITHIN_S)

    def wait_until_free(self, timeout_s: float, stop: threading.Event | None = None) -> str | None:
        """Waits until no earlier trial of the slot uses the GPU or its memory.

        Returns:
            None once it is free, on a CPU at once. After `timeout_s`, or when `stop` is set, what
            still uses it, in words.

        Raises:
            DeviceError: The GPU does not answer.
        """
        return None if self.gpu is None else self.gpu.wait_until_free(timeout_s, stop)

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


class Slots:
    """The slots of this host that a worker may hold.

    `why_cpu` says why there are only slots of the CPU; None if there are others, or if the user
    chose the CPU.

    Raises:
        DeviceError: `worker.devices` names a device this host does not have, or the NVIDIA driver
            is there and broken.
    """

    def __init__(self, store: Store, settings: WorkerConfig) -> None:
        self._store = store
        self._settings = settings
        self._offers: dict[SlotOffer, Device] = {}
        host_bytes = usable_memory()
        for device in discover(settings.devices):
            scope = cpu_scope() if device.kind == "cpu" else host_identity()
            count = settings.slots_per_device or (
                UNLIMITED_CPU_SLOTS if device.kind == "cpu" else 1
            )
            # What a trial may count on: slots of a GPU share its memory.
            gpu_bytes = None if device.kind == "cpu" else (device.memory_bytes or 0) // count
            slots = (
                SlotOffer(scope, device.key, k, device.name, gpu_bytes, host_bytes)
                for k in range(count)
            )
            self._offers |= dict.fromkeys(slots, device)
        gpus = any(device.kind == "gpu" for device in self._offers.values())
        # Kept open for the life of the process, because opening it takes long.
        self._nvml = Nvml.open() if gpus else None
        self._in_use: list[str] = []
        self._gone: list[str] = []
        self.why_cpu = why_no_gpu() if settings.devices is None and not gpus else None
        self._cpu_announced = False

    def claim(self, lease: WorkerLease) -> HeldSlot | None:
        """Takes a free slot, each device once before any is shared; None when all are held or used
        by others.

        A GPU must be free in the database and on this host: workers of another database hold its
        lock there. One that others compute on is passed over, as `worker.require_idle` says.

        Raises:
            DeviceError: Others compute on all GPUs that are free, and
                ``worker.require_idle=refuse``; or none of them answers.
        """
        left = self._idle(sorted(self._offers, key=lambda offer: offer.slot), lease)
        while left:
            taken = self._store.fleet.claim_slot(lease, left)
            if taken is None:
                break
            device = self._offers[taken]
            lock = None if device.kind == "cpu" else DeviceLock.acquire(taken.device, taken.slot)
            if device.kind == "cpu" or lock is not None:
                if self.why_cpu is not None and not self._cpu_announced:
                    logger.info("%s: trials run on the CPU", self.why_cpu)
                    self._cpu_announced = True
                return HeldSlot(
                    device, taken.slot, self._threads(taken), lock, self._occupancy(taken)
                )
            self._store.fleet.release_slot(lease)
            left.remove(taken)
        if self._in_use and self._settings.require_idle == "refuse":
            raise DeviceError(f"worker.require_idle=refuse: {'; '.join(self._in_use)}")
        return None

    def holders(self) -> str:
        """For people: who holds the slots, or uses a GPU without holding one."""
        lines = [
            line
            for scope in {offer.scope for offer in self._offers}
            for line in self._store.fleet.holders(scope)
        ]
        hint = ["worker.require_idle=ignore takes a GPU that is in use"] if self._in_use else []
        return (
            "; ".join([*self._gone, *self._in_use, *hint, *lines])
            or "workers of another database hold them"
        )

    def waiting_for(self) -> str:
        """For `status`: what a worker without a slot waits for."""
        return f"waiting for a device{': ' if self._in_use else ''}{'; '.join(self._in_use)}"

    def in_use(self) -> list[str]:
        """For people: the GPUs that no worker holds but other programs use, and which programs.

        Raises:
            DeviceError: No GPU answers.
        """
        self._idle(list(self._offers), None)
        return self._in_use

    def _idle(self, offers: list[SlotOffer], lease: WorkerLease | None) -> list[SlotOffer]:
        """Those that no worker but the holder of `lease` holds, on devices that answer and that
        nobody else computes on.
        """
        self._in_use, self._gone = [], []
        if self._nvml is None or self._settings.require_idle == "ignore":
            return offers
        held = self._store.fleet.held({offer.scope for offer in offers}, but=lease)
        free = [offer for offer in offers if (offer.scope, offer.device, offer.slot) not in held]
        passed_over = set()
        for device in dict.fromkeys(self._offers[offer] for offer in free):
            if device.kind == "cpu":
                continue
            try:
                who = strangers(
                    self._nvml, device, held=any(key == device.key for _, key, _ in held)
                )
            except DeviceError as gone:
                self._gone.append(str(gone))
                passed_over.add(device)
                continue
            if who:
                self._in_use.append(f"{device.label} is used by {', '.join(who)}")
                passed_over.add(device)
        if len(self._gone) == len(set(self._offers.values())):
            raise DeviceError("; ".join(self._gone))
        return [offer for offer in free if self._offers[offer] not in passed_over]

    def _occupancy(self, taken: SlotOffer) -> Occupancy | None:
        if self._nvml is None or self._offers[taken].kind == "cpu":
            return None
        alone = (
            self._settings.slots_per_device or 1
        ) == 1 and self._settings.require_idle != "ignore"
        return Occupancy(self._nvml, self._offers[taken], taken.slot, alone=alone)

    def _threads(self, taken: SlotOffer) -> int | None:
        """How many threads a trial may use, None for no limit.

        Without a limit, CPU workers that each use all cores slow each other down tenfold.
        """
        if self._settings.threads is not None or self._offers[taken].kind != "cpu":
            return self._settings.threads
        sharers = max(
            self._settings.slots_per_device or _CPU_SHARERS,
            len(self._store.fleet.holders(taken.scope)),
        )
        return max(1, usable_cores() // sharers)
