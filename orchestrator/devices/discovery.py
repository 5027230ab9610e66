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
_said: set[str] = set()


def discover(selection: Sequence[str | int] | None) -> list[Device]:
    """The devices of this host that this process may use and `selection` names; without GPUs, the
    CPU.

    ``CUDA_VISIBLE_DEVICES`` set outside limits what there is, read as CUDA reads it with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``: indices count in NVML's order, and the first entry that names
    nothing hides all later ones. A GPU that does not answer is left out, with a warning.

    Args:
        selection: Indices as in ``nvidia-smi``, UUIDs or their beginnings, patterns with ``*``,
            ``cpu``; None for every GPU.

    Raises:
        DeviceError: An entry names nothing (the message lists what there is), or the NVIDIA driver
            is there and broken.
    """
    everything, problems = _list_gpus()
    gpus = _visible(everything, os.environ.get("CUDA_VISIBLE_DEVICES"))
    cpu = Device("cpu", None, "CPU", physical_memory(), "cpu")
    for problem in problems:
        if problem not in _said:
            logger.warning("%s; it is left out", problem)
            _said.add(problem)
    if selection is None:
        return gpus or [cpu]
    chosen: dict[str, Device] = {}
    for entry in selection:
        found = [device for device in [*gpus, cpu] if _matches(device, entry)]
        if not found:
            there = ", ".join(f"{gpu.index}: {gpu.key} ({gpu.name})" for gpu in gpus) or "no GPU"
            but = "".join(f"; {problem}" for problem in problems)
            raise DeviceError(
                f"worker.devices: {entry!r} names no device of this host; there is {there}, and "
                f"cpu{but}"
            )
        chosen |= {device.key: device for device in found}
    return list(chosen.values())


def why_no_gpu() -> str | None:
    """In words, why `discover` finds no GPU; None if it finds one.

    Raises:
        DeviceError: The NVIDIA driver is there and broken.
    """
    nvml = Nvml.open()
    if nvml is None:
        return "no NVIDIA driver here"
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
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in its order (CUDA Programming Guide,
    environment variables).
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
            if len(found) > 1:  # CUDA takes the beginning of a UUID only if it is unambiguous
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
