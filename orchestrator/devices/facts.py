"""Facts about a device that are stored with the results measured on it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from orchestrator.devices.device import Device
from orchestrator.devices.host import usable_cores
from orchestrator.devices.nvml import Nvml


@dataclass(frozen=True)
class DeviceFacts:
    """A device as it is stored with an attempt.

    `driver` and `cuda` (the newest version that the driver supports) are None for a CPU; `cores`
    (those that this process may use) is None for a GPU.
    """

    key: str
    kind: str
    name: str
    memory_bytes: int | None
    driver: str | None
    cuda: str | None
    cores: int | None


def describe(device: Device) -> dict[str, str | int | None]:
    """The `DeviceFacts` as plain JSON data; looked up once per process.

    Raises:
        DeviceError: The NVIDIA driver does not answer.
    """
    return asdict(_facts(device))


@cache
def _facts(device: Device) -> DeviceFacts:
    if device.kind == "cpu":
        return DeviceFacts(
            "cpu", "cpu", _cpu_name(), device.memory_bytes, None, None, usable_cores()
        )
    driver: str | None = None
    cuda: str | None = None
    nvml = Nvml.open()
    if nvml is not None:
        with nvml:
            driver, cuda = nvml.driver()
    return DeviceFacts(device.key, "gpu", device.name, device.memory_bytes, driver, cuda, None)


def _cpu_name() -> str:
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"
