"""How much memory a trial can count on in a slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import devices
from orchestrator.config import WorkerConfig
from orchestrator.devices import Device, host
from orchestrator.worker import device_slot as slots
from orchestrator.worker.device_slot import Slots

GIB = 2**30
GPU = Device("GPU-1", 0, "NVIDIA H100 80GB HBM3", 80 * GIB, "gpu")
UNTOLD = Device("GPU-2", 1, "GB10", None, "gpu")
CPU = Device("cpu", None, "CPU", 64 * GIB, "cpu")


def offered(
    monkeypatch: pytest.MonkeyPatch, device: Device, **settings: Any
) -> set[tuple[int | None, int]]:
    monkeypatch.setattr(slots, "discover", lambda _: [device])
    monkeypatch.setattr(slots, "usable_memory", lambda: 64 * GIB)
    store: Any = None  # none is asked before a slot is claimed
    return {
        (offer.gpu_bytes, offer.host_bytes)
        for offer in Slots(store, WorkerConfig(**settings))._offers
    }


def test_slots_of_a_gpu_share_its_memory_and_the_hosts_is_everybodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert offered(monkeypatch, GPU) == {(80 * GIB, 64 * GIB)}
    assert offered(monkeypatch, GPU, slots_per_device=2) == {(40 * GIB, 64 * GIB)}
    assert offered(monkeypatch, UNTOLD) == {(0, 64 * GIB)}
    assert offered(monkeypatch, CPU, slots_per_device=4) == {(None, 64 * GIB)}


def test_a_containers_limit_is_what_a_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/self/cgroup": "0::/job/step\n",
        "/sys/fs/cgroup/job/step/memory.max": "max\n",
        "/sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
        "/sys/fs/cgroup/memory.max": f"{16 * GIB}\n",
    }

    def read(path: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(str(path))
        return files[str(path)]

    monkeypatch.setattr(host, "physical_memory", lambda: 64 * GIB)
    monkeypatch.setattr(Path, "read_text", read)
    assert devices.usable_memory() == 8 * GIB
    files["/proc/self/cgroup"] = "12:cpu:/x\n5:memory:/docker/1\n"
    # as a container sees its own
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = f"{4 * GIB}\n"
    assert devices.usable_memory() == 4 * GIB
    files.clear()
    assert devices.usable_memory() == 64 * GIB
    monkeypatch.setattr(host, "physical_memory", lambda: None)
    assert devices.usable_memory() == 0
