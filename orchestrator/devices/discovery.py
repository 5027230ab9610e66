"""Which devices this process may use, and which of them a selection names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from typing import Final

from orchestrator.devices.device import Device
from orchestrator.devices.host import physical_memory
from orchestrator.devices.nvml import Nvml
from orchestrator.errors import DeviceError
from orchestrator.logs import logger

_WILDCARDS: Final = frozenset("*?[")
_reported: set[str] = set()


def discover(selection: Sequence[str | int] | None) -> list[Device]:
    """The devices of this host that this process may use and `selection` names.

    Without any GPU, it is the CPU.

    ``CUDA_VISIBLE_DEVICES`` in this process's environment limits the choice. It is read as CUDA
    reads it with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``: indices follow NVML's order, and the first entry
    that names nothing hides all later ones. A GPU that does not answer is left out, with a warning.

    Args:
        selection: Indices as in ``nvidia-smi``, UUIDs or UUID prefixes, patterns with ``*``,
            ``cpu``; None for every GPU.

    Raises:
        DeviceError: An entry matches no device (the message lists them), or the NVIDIA driver is
            installed but broken.
    """
    everything, problems = _list_gpus()
    gpus = _visible(everything, os.environ.get("CUDA_VISIBLE_DEVICES"))
    cpu = Device("cpu", None, "CPU", physical_memory(), "cpu")
    for problem in problems:
        if problem not in _reported:  # discovery is repeated while a worker waits for a device
            logger.warning("%s; it is not used", problem)
            _reported.add(problem)
    if selection is None:
        return gpus or [cpu]

    chosen: dict[str, Device] = {}
    for entry in selection:
        found = [device for device in [*gpus, cpu] if _matches(device, entry)]
        if not found:
            devices = ", ".join(f"{gpu.index}: {gpu.key} ({gpu.name})" for gpu in gpus) or "no GPU"
            remarks = "".join(f"; {problem}" for problem in problems)
            raise DeviceError(
                f"worker.devices: {entry!r} matches no device of this host; it has {devices}, "
                f"and cpu{remarks}"
            )
        chosen |= {device.key: device for device in found}
    return list(chosen.values())


def why_no_gpu() -> str | None:
    """Why `discover` finds no GPU, in words; None if it finds one.

    Raises:
        DeviceError: The NVIDIA driver is installed but broken.
    """
    nvml = Nvml.open()
    if nvml is None:
        return "no NVIDIA driver on this host"
    with nvml:
        gpus, problems = nvml.gpus()
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _visible(gpus, variable):
        return None
    if gpus:
        return f"CUDA_VISIBLE_DEVICES={variable!r} hides every GPU"
    return "; ".join(problems) or "the NVIDIA driver sees no GPU"


def _list_gpus() -> tuple[list[Device], list[str]]:
    nvml = Nvml.open()
    if nvml is None:
        return [], []
    with nvml:
        return nvml.gpus()


def _visible(gpus: list[Device], variable: str | None) -> list[Device]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in its order.

    The rules are those of the CUDA Programming Guide, section "Environment Variables".
    """
    if variable is None:
        return gpus
    visible: list[Device] = []
    for entry in variable.split(","):
        entry = entry.strip()
        if entry.isdigit():
            found = [gpu for gpu in gpus if gpu.index == int(entry)]
        else:
            found = [gpu for gpu in gpus if entry and gpu.key.startswith(entry)]
            if len(found) > 1:  # CUDA accepts the prefix of a UUID only if it is unambiguous
                found = []
        if not found or any(gpu in visible for gpu in found):
            break
        visible += found
    return visible


def _matches(device: Device, entry: str | int) -> bool:
    text = str(entry).strip()
    if text.isdigit():
        return device.index == int(text)
    if device.kind == "cpu" or text.lower() == "cpu":
        return device.key == text.lower()
    if _WILDCARDS & set(text):
        return fnmatch.fnmatchcase(device.key, text)
    return bool(text) and device.key.startswith(text)
