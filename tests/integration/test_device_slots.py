"""Slots of declared devices: raced for, passed over while others use the GPU, given back when the
GPU is gone.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from orchestrator import logs
from orchestrator.cli import main
from orchestrator.config import WorkerConfig
from orchestrator.devices import host_identity, lock, occupancy
from orchestrator.errors import DeviceError
from orchestrator.model import Completed
from orchestrator.store import Store, WorkerLease
from orchestrator.worker import device_slot as slots
from orchestrator.worker.device_slot import HeldSlot, Slots
from orchestrator.worker.worker import Worker
from tests.support.nvml import GIB, FakeNvml, process
from tests.support.running import finish, make_job, running_with
from tests.support.studies import spec

GPUS = [f"GPU-{name}" for name in ("aa", "bb", "cc", "dd")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvml:
    monkeypatch.setattr(lock, "_lock_directory", lambda: tmp_path)
    monkeypatch.setattr(occupancy, "pids_are_ours", lambda: True)
    return FakeNvml(list(GPUS)).install(monkeypatch)


@pytest.fixture
def stranger() -> Iterator[int]:
    with process({}) as pid:
        yield pid


def names(held: list[HeldSlot]) -> list[tuple[str, int]]:
    return sorted((h.device.key, h.slot) for h in held)


def test_twelve_workers_race_for_eight_slots_and_each_is_held_once(
    fake: FakeNvml, database_url: str
) -> None:
    settings = WorkerConfig(devices=[0, "GPU-b*", "GPU-cc", 3], slots_per_device=2)
    start = threading.Barrier(12)

    def race(_: int) -> tuple[Store, Slots, WorkerLease, HeldSlot | None]:
        store = Store(database_url)
        lease, offered = store.fleet.register(60), Slots(store, settings)
        start.wait()
        held = offered.claim(lease)
        store.rest()
        return store, offered, lease, held

    with ThreadPoolExecutor(12) as pool:
        came = list(pool.map(race, range(12)))
    held = [h for *_, h in came if h is not None]
    assert names(held) == [(gpu, k) for gpu in GPUS for k in (0, 1)]
    winner = next(c for c in came if c[3] is not None)
    loser = next(c for c in came if c[3] is None)
    freed = winner[3]
    assert freed is not None
    with freed:
        winner[0].ledger.deregister(winner[2], "ended in order")
        assert loser[1].claim(loser[2]) is None, (
            "free in the database, but a process holds its lock"
        )
    taken = loser[1].claim(loser[2])
    assert taken is not None
    assert (taken.device.key, taken.slot) == (freed.device.key, freed.slot)
    for h in [*held, taken]:
        h.lock.release() if h.lock else None


def test_each_device_is_taken_once_before_any_is_shared(fake: FakeNvml, store: Store) -> None:
    settings = WorkerConfig(slots_per_device=2)
    held = [Slots(store, settings).claim(store.fleet.register(60)) for _ in range(5)]
    assert [h.slot for h in held if h is not None] == [0, 0, 0, 0, 1]


def test_status_tells_gpus_of_one_name_apart(
    fake: FakeNvml,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Slots(store, WorkerConfig(devices=[2])).claim(store.fleet.register(60)) is not None
    assert Slots(store, WorkerConfig(devices=["cpu"])).claim(store.fleet.register(60)) is not None
    store.studies.launch(spec())
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    monkeypatch.setattr(logs, "configure", lambda speaker: None)  # this process is pytest's
    assert main(["status"]) == 0
    table = capsys.readouterr().out
    assert "NVIDIA H100 GPU-cc " in table
    assert " CPU  " in table
    assert main(["status", "--json"]) == 0
    assert [w["device_key"] for w in json.loads(capsys.readouterr().out)["workers"]] == [
        "GPU-cc",
        "cpu",
    ]


def test_a_gpu_that_others_compute_on_is_passed_over(
    fake: FakeNvml, store: Store, lease: WorkerLease, stranger: int
) -> None:
    fake.computing = {GPUS[0]: {stranger: 4 * GIB}}
    held = Slots(store, WorkerConfig()).claim(lease)
    assert held is not None
    assert held.device.key == GPUS[1]


def test_with_no_gpu_idle_a_worker_waits_refuses_or_shares(
    fake: FakeNvml, store: Store, lease: WorkerLease, stranger: int
) -> None:
    fake.computing = {GPUS[0]: {stranger: 4 * GIB}}
    who = (
        f"GPU 0 (NVIDIA H100, GPU-aa) is used by sleep (pid {stranger}, "
        f"{psutil.Process().username()}, 4,096 MiB)"
    )
    waiting = Slots(store, WorkerConfig(devices=[0]))
    assert waiting.claim(lease) is None
    assert waiting.holders() == f"{who}; worker.require_idle=ignore takes a GPU that is in use"
    assert waiting.waiting_for() == f"waiting for a device: {who}"
    assert store.fleet.holders(host_identity()) == [], "it holds nothing meanwhile"

    with pytest.raises(DeviceError) as refused:
        Slots(store, WorkerConfig(devices=[0], require_idle="refuse")).claim(lease)
    assert str(refused.value) == f"worker.require_idle=refuse: {who}"

    fake.computing = {}
    taken = waiting.claim(lease)
    assert taken is not None
    fake.computing = {GPUS[0]: {stranger: 4 * GIB}}
    with taken:
        store.fleet.release_slot(lease)
    shared = Slots(store, WorkerConfig(devices=[0], require_idle="ignore")).claim(lease)
    assert shared is not None


def test_in_a_container_the_memory_of_another_workers_trial_is_nobody_elses(
    fake: FakeNvml, store: Store, lease: WorkerLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy, "pids_are_ours", lambda: False)
    settings = WorkerConfig(devices=[0], slots_per_device=2)
    assert Slots(store, settings).claim(lease) is not None
    fake.in_use = {GPUS[0]: 20 * GIB}
    joins = Slots(store, settings).claim(store.fleet.register(60))
    assert joins is not None
    assert joins.slot == 1
    store.ledger.deregister(lease, "ended in order")
    assert joins.lock is not None
    assert (
        Slots(store, WorkerConfig(devices=[0], slots_per_device=3)).claim(store.fleet.register(60))
        is not None
    )


def test_a_gpu_that_falls_off_the_bus_while_a_worker_waits_is_passed_over(
    fake: FakeNvml, store: Store, lease: WorkerLease, stranger: int
) -> None:
    fake.computing = {gpu: {stranger: GIB} for gpu in GPUS[:2]}
    waiting = Slots(store, WorkerConfig(devices=[0, 1]))
    fake.lost = {GPUS[0]}
    assert waiting.claim(lease) is None
    assert waiting.holders().startswith(
        "GPU 0 (NVIDIA H100, GPU-aa) does not answer: GPU is lost; GPU 1 ("
    )
    fake.lost |= {GPUS[1]}
    with pytest.raises(DeviceError, match=r"GPU 1 .* does not answer: GPU is lost$"):
        waiting.claim(lease)


class FallsOff(FakeNvml):
    """The first GPU is lost once it answered `answers` times that it is there."""

    answers = 1

    def nvmlDeviceGetMemoryInfo(self, uuid: str, version: int | None = None) -> SimpleNamespace:  # noqa: N802
        if uuid == self.uuids[0] and self.open and version is None and self.watched:
            self.answers -= 1
            if self.answers < 0:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return super().nvmlDeviceGetMemoryInfo(uuid, version)

    watched = False


def test_a_trial_whose_gpu_is_gone_is_no_failure_and_goes_on_elsewhere(
    fake: FakeNvml,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    falling = FallsOff(["GPU-bad", "GPU-good"]).install(monkeypatch)
    caplog.set_level(logging.INFO, "orchestrator")
    objective = {"_target_": "tests.support.on_devices.fails_at_first"}
    study = store.studies.launch(spec(cells=1, trials=2, objective=objective)).study_id

    def worker(device: int) -> Worker:
        settings = WorkerConfig(devices=[device], idle_timeout_s=0.05, poll_s=0.05, lease_ttl_s=30)
        return Worker(store, settings, tmp_path / "runs")

    bad, good = worker(0), worker(1)
    falling.watched = True
    with pytest.raises(
        DeviceError, match=r"^GPU 0 \(NVIDIA H100, GPU-bad\) does not answer: GPU is lost$"
    ):
        bad.run()
    assert store.reads.workers() == [], "it gave back its slot and left in order"
    assert [t.state for t in store.reads.trials(study)] == ["RUNNING"]
    [attempt] = store.reads.attempts(study, 0)
    assert attempt.outcome == "lost"
    assert (attempt.reason or "").endswith("GPU is lost")
    monkeypatch.setattr(slots, "FREE_WITHIN_S", 0.01)
    with process({occupancy.SLOT_VARIABLE: "GPU-good/0"}) as pid:
        falling.computing = {"GPU-good": {pid: GIB}}
        good.run()
    assert f"GPU-good) is still used by sleep (pid {pid}, " in caplog.text
    assert [(t.state, t.values) for t in store.reads.trials(study)] == [("COMPLETE", (1.0,))] * 2
    assert "using GPU 1 (NVIDIA H100, GPU-good), slot 0" in caplog.text


def test_the_threads_of_a_child_on_a_cpu_are_its_slots_share_of_the_cores(
    store: Store, lease: WorkerLease, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: 7)
    held = Slots(store, WorkerConfig(devices=["cpu"], slots_per_device=2)).claim(lease)
    assert held is not None
    assert held.threads == 3
    objective: dict[str, Any] = {"_target_": "tests.support.on_devices.threads"}
    with running_with(objective, env=held.environment, threads=held.threads) as runner:
        outcome, _ = finish(runner.start(make_job(tmp_path, objective)))
    assert isinstance(outcome, Completed), outcome
    assert outcome.attrs["limits"] == ["3"]
    assert 1 <= outcome.values[0] <= 3, (
        "no more than its share; MKL takes no more than there are cores either"
    )
    unlimited = Slots(store, WorkerConfig(devices=["cpu"]))
    shares = []
    for _ in range(3):
        one = unlimited.claim(store.fleet.register(60))
        shares.append(one and one.threads)
    assert shares == [3, 2, 1], "each shares with those that came before"


def test_without_a_gpu_the_cpu_is_taken_and_that_is_said(
    fake: FakeNvml, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "orchestrator")
    fake.init_error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    Slots(store, WorkerConfig(devices=["cpu"]))
    assert caplog.messages == [], "asked for"
    offered = Slots(store, WorkerConfig())
    held = [offered.claim(store.fleet.register(60)) for _ in range(2)]
    assert [h and h.device.kind for h in held] == ["cpu", "cpu"]
    assert caplog.messages == ["no NVIDIA driver on this host: trials run on the CPU"]
    assert held[0] is not None
    held[0].check()
    assert held[0].wait_until_free(600) is None
    assert held[0].environment == {"CUDA_VISIBLE_DEVICES": "", occupancy.SLOT_VARIABLE: "cpu/0"}
    assert os.environ.get(occupancy.SLOT_VARIABLE) is None
