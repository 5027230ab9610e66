"""This host's devices, GPUs (by UUID) or its CPU: discovery, pinning, locks, occupancy."""

from __future__ import annotations

from orchestrator.devices.device import Device, child_environment, torch_device
from orchestrator.devices.discovery import discover, why_no_gpu
from orchestrator.devices.facts import describe
from orchestrator.devices.host import cpu_scope, host_identity, usable_cores, usable_memory
from orchestrator.devices.lock import DeviceLock
from orchestrator.devices.nvml import Nvml
from orchestrator.devices.occupancy import Occupancy, slot_environment, strangers

__all__ = [
    "Device",
    "DeviceLock",
    "Nvml",
    "Occupancy",
    "child_environment",
    "cpu_scope",
    "describe",
    "discover",
    "host_identity",
    "slot_environment",
    "strangers",
    "torch_device",
    "usable_cores",
    "usable_memory",
    "why_no_gpu",
]
