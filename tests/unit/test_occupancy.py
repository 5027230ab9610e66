"""Who uses a GPU, with a scripted NVML and real processes that it says are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from orchestrator.devices import (
    Device,
    Nvml,
    Occupancy,
    describe,
    discover,
    occupancy,
    slot_environment,
    strangers,
)
from orchestrator.errors import DeviceError
from tests.support.nvml import GIB, FakeNvml, process

A, B = "GPU-aaaa1111-0000", "GPU-bbbb2222-0000"
GPU = Device(A, 0, "NVIDIA H100", 80 * GIB, "gpu")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setattr(occupancy, "pids_are_ours", lambda: True)
    return FakeNvml([A, B]).install(monkeypatch)


@pytest.fixture
def nvml(fake: FakeNvml) -> Iterator[Nvml]:
    opened = Nvml.open()
    assert opened is not None
    with opened:
        yield opened
    assert fake.open == 0


# ---------------------------------------------------------------------------------------- strangers


def test_a_stranger_is_named_with_pid_user_and_memory(fake: FakeNvml, nvml: Nvml) -> None:
    assert strangers(nvml, GPU, held=False) == []
    with process({}) as pid:
        fake.computing = {A: {pid: 12 * GIB}, B: {os.getpid(): 1}}
        assert strangers(nvml, GPU, held=False) == [
            f"sleep (pid {pid}, {psutil.Process().username()}, 12,288 MiB)"
        ]
        fake.computing[A][pid] = None
        assert strangers(nvml, GPU, held=False) == [
            f"sleep (pid {pid}, {psutil.Process().username()})"
        ]
    assert strangers(nvml, GPU, held=False) == [], "it has ended, whatever the driver says still"


def test_what_trials_start_is_no_stranger_whatever_it_does_to_its_environment(
    fake: FakeNvml, nvml: Nvml
) -> None:
    ours = slot_environment(GPU, 1)
    with process(ours) as plain, process(ours, "env -i sleep 300") as bare:
        fake.computing = {A: {plain: GIB, bare: GIB}}
        assert strangers(nvml, GPU, held=True) == []


def test_a_trial_that_was_given_another_device_is_a_stranger(fake: FakeNvml, nvml: Nvml) -> None:
    with process({occupancy.SLOT_VARIABLE: f"{B}/0"}) as pid:
        fake.computing = {A: {pid: GIB}}
        assert len(strangers(nvml, GPU, held=False)) == 1


def test_a_screen_is_no_stranger_unless_it_holds_much(fake: FakeNvml, nvml: Nvml) -> None:
    fake.drawing = {A: {os.getpid(): GIB // 2}}
    assert strangers(nvml, GPU, held=False) == []
    fake.computing = {A: {os.getpid(): GIB // 2}}  # as a browser that decodes video
    assert strangers(nvml, GPU, held=False) == []
    fake.computing = {A: {os.getpid(): 2 * GIB}}
    assert len(strangers(nvml, GPU, held=False)) == 1


def test_the_server_of_mps_is_no_stranger(fake: FakeNvml, nvml: Nvml, tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    (tmp_path / "nvidia-cuda-mps-server").symlink_to(sleep)
    with process({}, f"{tmp_path}/nvidia-cuda-mps-server 300") as pid, process({}) as other:
        fake.computing = {A: {pid: 30 << 20, other: GIB}}
        assert [line.split()[0] for line in strangers(nvml, GPU, held=False)] == ["sleep"]


def test_a_process_that_proc_hides_is_a_stranger(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", hidden)
    fake.computing = {A: {os.getpid(): GIB}}
    assert strangers(nvml, GPU, held=False) == [f"a process (pid {os.getpid()}, 1,024 MiB)"]


@pytest.mark.parametrize("blind", ["a container", "a GPU that lists no processes"])
def test_where_pids_do_not_tell_memory_in_use_does(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch, blind: str
) -> None:
    if blind == "a container":
        monkeypatch.setattr(occupancy, "pids_are_ours", lambda: False)
        # a PID of the host, which means another process here
        fake.computing = {A: {os.getpid(): 0}}
    fake.no_processes = blind != "a container"
    fake.in_use = {A: GIB}
    assert strangers(nvml, GPU, held=False) == []
    fake.in_use = {A: 3 * GIB}
    said = strangers(nvml, GPU, held=False)
    assert said == ["processes that are not visible from here (3,072 MiB)"]
    assert strangers(nvml, GPU, held=True) == [], "it may be that of another worker's trial"
    with monkeypatch.context() as windows:
        windows.setattr(occupancy, "memory_is_ours", lambda: False)
        assert strangers(nvml, GPU, held=False) == []
    fake.old_driver = True
    assert strangers(nvml, GPU, held=False) == said
    fake.sizeless = True
    assert strangers(nvml, GPU, held=False) == [], "nobody can tell"


# ------------------------------------------------------------------------------- between two trials


def test_a_gpu_that_is_gone_is_an_error_with_its_name(fake: FakeNvml, nvml: Nvml) -> None:
    held = Occupancy(nvml, GPU, 0, alone=True)
    held.check()
    fake.lost = {A}
    for ask in (held.check, lambda: held.wait_until_free(0), held.used_bytes):
        with pytest.raises(
            DeviceError, match=r"^GPU 0 \(NVIDIA H100, GPU-aaaa1111\) does not answer: GPU is lost$"
        ):
            ask()
    fake.uuids.remove(A)  # as a MIG instance that was taken apart
    with pytest.raises(DeviceError, match=r"^GPU 0 \(NVIDIA H100, GPU-aaaa1111\) has disappeared$"):
        held.check()


def test_the_next_trial_waits_until_the_last_one_left_the_gpu(fake: FakeNvml, nvml: Nvml) -> None:
    held = Occupancy(nvml, GPU, 0, alone=True)
    assert held.wait_until_free(0) is None
    with ExitStack() as stack:
        pid = stack.enter_context(process(slot_environment(GPU, 0)))
        fake.computing = {A: {pid: 5 * GIB}}
        assert held.wait_until_free(0.01) == (
            f"GPU 0 (NVIDIA H100, GPU-aaaa1111) is still used by sleep (pid {pid}, "
            f"{psutil.Process().username()}, 5,120 MiB)"
        )
        stop = threading.Event()
        stop.set()
        assert held.wait_until_free(600, stop) is not None
        ending = threading.Timer(0.05, stack.close)
        ending.start()
        assert held.wait_until_free(60) is None
        ending.join()


def test_the_next_trial_waits_for_memory_that_nobody_holds_any_more(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.in_use = {A: GIB // 4}
    held = Occupancy(nvml, GPU, 0, alone=True)
    fake.in_use = {A: 5 * GIB + GIB // 4}
    assert (
        held.wait_until_free(0)
        == "5,120 MiB of GPU 0 (NVIDIA H100, GPU-aaaa1111) have not been freed"
    )

    looks = 0

    def freeing(device: Device) -> int:
        nonlocal looks
        looks += 1
        fake.in_use[A] -= 2 * GIB
        return fake.in_use[A]

    monkeypatch.setattr(nvml, "memory_in_use", freeing)
    assert held.wait_until_free(60) is None
    assert looks == 2, "3 GiB were too much, 1 GiB is spared"


def test_nobody_waits_for_others_on_the_gpu(fake: FakeNvml, nvml: Nvml) -> None:
    held = Occupancy(nvml, GPU, 0, alone=False)
    # a child of this process
    keeper = subprocess.Popen(["sleep", "300"], env={**os.environ, **slot_environment(GPU, 0)})
    with process(slot_environment(GPU, 1)) as neighbour, process({}) as stranger:
        fake.computing = {A: {keeper.pid: GIB, neighbour: 30 * GIB, stranger: 2 * GIB}}
        fake.drawing = {A: {os.getpid(): GIB}}
        assert held.wait_until_free(0) is None
    keeper.kill()
    keeper.wait()


def test_in_a_container_only_who_is_alone_on_a_gpu_waits_for_its_memory(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy, "pids_are_ours", lambda: False)
    alone, sharing = Occupancy(nvml, GPU, 0, alone=True), Occupancy(nvml, GPU, 0, alone=False)
    fake.in_use = {A: 8 * GIB}
    assert (alone.wait_until_free(0) or "").startswith("8,192 MiB of GPU 0")
    assert sharing.wait_until_free(0) is None
    assert (alone.used_bytes(), sharing.used_bytes()) == (8 * GIB, None)


def test_the_memory_of_a_trial_is_that_of_its_processes(fake: FakeNvml, nvml: Nvml) -> None:
    held = Occupancy(nvml, GPU, 0, alone=False)
    with (
        process(slot_environment(GPU, 0)) as one,
        process(slot_environment(GPU, 0)) as two,
        process({}) as other,
    ):
        fake.computing = {A: {one: 2 * GIB, two: GIB, other: 9 * GIB}}
        assert (held.used_bytes(), held.used_bytes([other]), held.used_bytes([1])) == (
            3 * GIB,
            9 * GIB,
            0,
        )
        fake.computing[A][two] = None
        assert held.used_bytes() is None, "NVML does not say"


# -------------------------------------------------------------------------------------------- facts


def test_what_is_kept_of_a_device_is_plain_data(fake: FakeNvml) -> None:
    assert describe(GPU) == {
        "key": A,
        "kind": "gpu",
        "name": "NVIDIA H100",
        "memory_bytes": 80 * GIB,
        "driver": "580.159.04",
        "cuda": "13.2",
        "cores": None,
    }
    assert fake.open == 0
    [cpu] = discover(["cpu"])
    facts = describe(cpu)
    assert (facts["key"], facts["driver"], facts["memory_bytes"]) == ("cpu", None, cpu.memory_bytes)
    assert facts["cores"]


# ---------------------------------------------------------------------------------------- real GPUs


@pytest.mark.gpu
def test_on_a_real_gpu_a_trial_is_told_from_a_stranger_and_its_memory_is_free_when_it_ends() -> (
    None
):
    gpus = [device for device in discover(None) if device.kind == "gpu"]
    opened = Nvml.open()
    if not gpus or opened is None:
        pytest.skip("this machine has no NVIDIA GPU")
    gpu = gpus[0]
    code = (
        "import torch; x = torch.zeros(2 << 30, dtype=torch.uint8, device='cuda'); print('there', "
        "flush=True); input()"
    )
    with opened as nvml:
        if strangers(nvml, gpu, held=False):
            pytest.skip("the GPU is in use")
        held = Occupancy(nvml, gpu, 0, alone=True)
        held.check()
        assert describe(gpu)["driver"]
        for mark, noticed in ((slot_environment(gpu, 0), False), ({}, True)):
            env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu.key, **mark}
            # not this process's child, as a keeper would be
            shell = ["sh", "-c", '"$1" -c "$0"; true', code, sys.executable]
            with subprocess.Popen(
                shell, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as trial:
                assert trial.stdout is not None
                assert trial.stdout.readline() == "there\n"
                blind = not occupancy.pids_are_ours()
                assert bool(strangers(nvml, gpu, held=False)) is (noticed or blind)
                if not noticed or blind:
                    assert (held.used_bytes() or 0) >= 2 << 30
                    assert held.wait_until_free(0) is not None
                trial.communicate("\n")
            assert held.wait_until_free(60) is None
