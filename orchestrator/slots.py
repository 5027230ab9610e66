"""A worker's device slot: offered by what this host has, claimed in the database, fenced by a lock on this host."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from orchestrator.config import WorkerConfig
from orchestrator.devices import Device, DeviceLock, cpu_scope, discover, host_identity, usable_cores, usable_memory
from orchestrator.store import SlotOffer, Store, WorkerLease

UNLIMITED_CPU_SLOTS = 1024
"""Every worker a user starts on a CPU is wanted; `worker.slots_per_device` sets a limit where there should be one."""
_CPU_SHARERS = 2


@dataclass(frozen=True)
class HeldSlot(AbstractContextManager["HeldSlot"]):
    """A claimed slot; the end of the block gives up its lock, the worker's end the slot itself.

    `threads` is the share of the CPU's cores for a trial, None where nothing limits it.
    """

    device: Device
    slot: int
    threads: int | None
    lock: DeviceLock | None

    @property
    def descriptors(self) -> list[int]:
        """What children keep open, so that the device stays locked as long as one of them lives."""
        return [] if self.lock is None else [self.lock.fileno()]

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


class Slots:
    """The slots of this host that a worker may hold.

    Raises:
        DeviceError: `worker.devices` names a device this host does not have.
    """

    def __init__(self, store: Store, settings: WorkerConfig) -> None:
        self._store = store
        self._settings = settings
        self._offers: dict[SlotOffer, Device] = {}
        host_bytes = usable_memory()
        for device in discover(settings.devices):
            scope = cpu_scope() if device.kind == "cpu" else host_identity()
            count = settings.slots_per_device or (UNLIMITED_CPU_SLOTS if device.kind == "cpu" else 1)
            # What a trial may count on: slots of a GPU share its memory.
            gpu_bytes = None if device.kind == "cpu" else (device.memory_bytes or 0) // count
            slots = (SlotOffer(scope, device.key, k, device.name, gpu_bytes, host_bytes) for k in range(count))
            self._offers |= dict.fromkeys(slots, device)

    def claim(self, lease: WorkerLease) -> HeldSlot | None:
        """Takes a free slot, each device once before any is shared; None when all are held.

        A GPU must be free in the database and on this host: workers of another database hold its lock there.
        """
        left = sorted(self._offers, key=lambda offer: offer.slot)
        while left:
            taken = self._store.fleet.claim_slot(lease, left)
            if taken is None:
                return None
            device = self._offers[taken]
            lock = None if device.kind == "cpu" else DeviceLock.acquire(taken.device, taken.slot)
            if device.kind == "cpu" or lock is not None:
                return HeldSlot(device, taken.slot, self._threads(taken), lock)
            self._store.fleet.release_slot(lease)
            left.remove(taken)
        return None

    def holders(self) -> str:
        """For people: who holds them."""
        lines = [line for scope in {offer.scope for offer in self._offers} for line in self._store.fleet.holders(scope)]
        return "; ".join(lines) or "workers of another database hold them"

    def _threads(self, taken: SlotOffer) -> int | None:
        """CPU workers that each take all cores slow each other down tenfold."""
        if self._settings.threads is not None or self._offers[taken].kind != "cpu":
            return self._settings.threads
        sharers = max(self._settings.slots_per_device or _CPU_SHARERS, len(self._store.fleet.holders(taken.scope)))
        return max(1, usable_cores() // sharers)
