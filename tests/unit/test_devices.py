"""Which devices a host has, with a scripted NVML in place of the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from orchestrator.devices import (
    Device,
    DeviceLock,
    child_environment,
    cpu_scope,
    discover,
    discovery,
    host_identity,
    torch_device,
    why_no_gpu,
)
from orchestrator.errors import DeviceError
from tests.support.nvml import FakeNvml
from tests.support.waiting import wait_until

A, B, C = "GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-cccc3333-0000"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml([A, B, C]).install(monkeypatch)


def keys(selection: list[str | int] | None = None) -> list[str]:
    return [device.key for device in discover(selection)]


def test_every_gpu_is_a_device_by_uuid(nvml: FakeNvml) -> None:
    assert discover(None) == [
        Device(uuid, i, "NVIDIA H100", 80 << 30, "gpu") for i, uuid in enumerate([A, B, C])
    ]
    assert nvml.open == 0


def test_without_gpu_driver_or_binding_the_cpu_is_the_device(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.uuids = []
    assert keys() == ["cpu"]
    nvml.init_error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert keys() == ["cpu"]
    nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert keys() == ["cpu"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    [cpu] = discover(None)
    assert (cpu.kind, cpu.index) == ("cpu", None)


def test_a_broken_driver_is_an_error_and_never_a_cpu(nvml: FakeNvml) -> None:
    nvml.init_error = pynvml.NVML_ERROR_UNKNOWN
    with pytest.raises(DeviceError, match="the NVIDIA driver does not answer: Unknown Error"):
        discover(None)


def test_a_gpu_that_is_lost_is_left_out_with_a_warning_and_never_replaced_by_the_cpu(
    nvml: FakeNvml, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_reported", set())
    nvml.lost = {B}
    assert (keys(), keys(["GPU*"])) == ([A, C], [A, C])
    assert [record.message for record in caplog.records] == [
        "GPU 1 does not answer: GPU is lost; it is not used"
    ]
    with pytest.raises(
        DeviceError,
        match=(
            r"'1' matches no device of this host; .* and cpu; GPU 1 does not answer: GPU is "
            r"lost$"
        ),
    ):
        discover(["1"])
    nvml.lost = {A, B, C}
    with pytest.raises(
        DeviceError, match=r"^no NVIDIA GPU can be used: GPU 0 does not answer: GPU is lost; GPU 1 "
    ):
        discover(None)


def test_why_there_is_no_gpu_is_told(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_gpu() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_gpu() == "CUDA_VISIBLE_DEVICES='' hides every GPU"
    nvml.instances = {0: [], 1: [], 2: []}
    assert (why_no_gpu() or "").startswith("GPU 0 is in MIG mode and has no instances; GPU 1 is")
    nvml.uuids = []
    assert why_no_gpu() == "the NVIDIA driver sees no GPU"
    nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert why_no_gpu() == "no NVIDIA driver on this host"
    assert nvml.open == 0


def test_memory_that_nvml_does_not_know_is_none(nvml: FakeNvml) -> None:
    nvml.sizeless = True
    assert discover([0])[0].memory_bytes is None


def test_a_gpu_in_mig_mode_is_its_instances(nvml: FakeNvml) -> None:
    nvml.instances = {1: ["MIG-1", "MIG-2"]}
    assert keys() == [A, "MIG-1", "MIG-2", C]
    assert keys([1]) == ["MIG-1", "MIG-2"]
    assert discover(["MIG-2"]) == [Device("MIG-2", 1, "NVIDIA H100", 10 << 30, "gpu")]


@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        ("", ["cpu"]),
        ("-1", ["cpu"]),
        ("2,0", [C, A]),
        ("0,9,1", [A]),  # CUDA: an entry that names nothing hides the later ones
        ("0,0,1", [A]),
        (B, [B]),
        ("GPU-cccc", [C]),
        ("GPU-aaaa", ["cpu"]),  # ambiguous
        (f" {C} , {A} ", [C, A]),
    ],
)
def test_cuda_visible_devices_set_outside_limits_what_there_is(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, variable: str, visible: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert keys() == visible


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ([0], [A]),
        (["2", 0], [C, A]),
        ([B, B, 1], [B]),
        (["GPU-aaaa"], [A, B]),
        (["*2222*"], [B]),
        (["cpu"], ["cpu"]),
        (["CPU", 0], ["cpu", A]),
    ],
)
def test_a_selection_goes_by_index_uuid_beginning_or_pattern(
    nvml: FakeNvml, selection: list[str | int], chosen: list[str]
) -> None:
    assert keys(selection) == chosen


@pytest.mark.parametrize("entry", [3, "GPU-x", "*x*", "", "gpu0"])
def test_an_entry_that_names_nothing_is_refused_with_a_list_of_what_there_is(
    nvml: FakeNvml, entry: str | int
) -> None:
    with pytest.raises(DeviceError) as caught:
        discover([entry])
    assert str(caught.value) == (
        f"worker.devices: {entry!r} matches no device of this host; "
        f"it has 0: {A} (NVIDIA H100), 1: {B} (NVIDIA H100), 2: {C} (NVIDIA H100), and cpu"
    )


def test_a_child_sees_its_device_and_no_other(nvml: FakeNvml) -> None:
    [gpu] = discover([1])
    [cpu] = discover(["cpu"])
    assert child_environment(gpu) == {"CUDA_VISIBLE_DEVICES": B, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert child_environment(cpu) == {"CUDA_VISIBLE_DEVICES": ""}
    assert (torch_device(gpu), torch_device(cpu)) == ("cuda:0", "cpu")


def test_host_and_cpu_scope_are_the_same_in_every_process_of_it() -> None:
    code = (
        "from orchestrator.devices import cpu_scope, host_identity; print(host_identity()); "
        "print(cpu_scope())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert other == [host_identity(), cpu_scope()]
    assert cpu_scope().startswith(host_identity())


# -------------------------------------------------------------------------------------------- locks


def test_a_slot_is_locked_once_until_it_is_released(tmp_path: Path) -> None:
    first = DeviceLock.acquire(A, 0, tmp_path)
    assert first is not None
    assert DeviceLock.acquire(A, 0, tmp_path) is None
    others = [
        DeviceLock.acquire(A, 1, tmp_path),
        DeviceLock.acquire(B, 0, tmp_path),
        DeviceLock.acquire("MIG-x/1/0", 0, tmp_path),
    ]
    assert None not in others
    first.release()
    first.release()
    again = DeviceLock.acquire(A, 0, tmp_path)
    assert again is not None
    for lock in [again, *others]:
        assert lock is not None
        lock.release()


def test_a_lock_lasts_as_long_as_any_process_that_inherited_it(tmp_path: Path) -> None:
    lock = DeviceLock.acquire(A, 0, tmp_path)
    assert lock is not None
    child = subprocess.Popen(["sleep", "300"], pass_fds=[lock.fileno()])
    lock.release()
    assert DeviceLock.acquire(A, 0, tmp_path) is None
    child.kill()
    child.wait()
    again = wait_until(lambda: DeviceLock.acquire(A, 0, tmp_path), timeout=5)
    again.release()


def test_a_deleted_lock_file_does_not_give_the_lock_twice_from_then_on(tmp_path: Path) -> None:
    stale = DeviceLock.acquire(A, 0, tmp_path)
    assert stale is not None
    next(tmp_path.iterdir()).unlink()
    lock = DeviceLock.acquire(A, 0, tmp_path)
    assert lock is not None
    assert DeviceLock.acquire(A, 0, tmp_path) is None
    stale.release()
    lock.release()


def test_the_default_directory_is_private() -> None:
    lock = DeviceLock.acquire(f"test-{os.getpid()}")
    assert lock is not None
    path = Path(f"/proc/self/fd/{lock.fileno()}").readlink()
    lock.release()
    path.unlink()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.gpu
def test_torch_in_a_child_sees_exactly_the_device_it_was_given() -> None:
    gpus = [device for device in discover(None) if device.kind == "gpu"]
    if not gpus:
        pytest.skip("this machine has no NVIDIA GPU")
    code = "import torch; print(torch.cuda.device_count(), torch.ones(1, device='cuda:0').item())"
    for gpu in gpus:
        env = {**os.environ, **child_environment(gpu)}
        seen = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert seen.stdout.split() == ["1", "1.0"]
