"""One device, and how a child process is pinned to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Device:
    """One GPU (or MIG instance, with the index of its GPU), or the CPU.

    `key` is the UUID, or ``cpu``. `index` is the one that NVML and ``nvidia-smi`` use.
    `memory_bytes` is None if NVML does not report it.
    """

    key: str
    index: int | None
    name: str
    memory_bytes: int | None
    kind: Literal["gpu", "cpu"]

    @property
    def label(self) -> str:
        """For people: ``GPU 2 (NVIDIA H100, GPU-5c3e91b2)``."""
        return (
            "the CPU" if self.kind == "cpu" else f"GPU {self.index} ({self.name}, {self.key[:12]})"
        )


def child_environment(device: Device) -> dict[str, str]:
    """Environment variables that make exactly this device visible to a process.

    For the CPU, they make every GPU invisible.
    """
    if device.kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": device.key, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def torch_device(device: Device) -> str:
    """torch's name for the device in a process with its `child_environment`."""
    return "cpu" if device.kind == "cpu" else "cuda:0"
