"""Finds who uses a GPU: other programs before a slot is claimed, leftovers after a trial.

NVML reports processes by the PIDs they have outside any container. Where this process sees the same
PIDs, each process can be identified: this program's processes, and those they start, have
`SLOT_VARIABLE` in their environment. Inside a container, only the memory in use is informative.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import psutil

from orchestrator.devices.device import Device
from orchestrator.devices.nvml import GpuProcess, Nvml

SLOT_VARIABLE: Final = "ORCHESTRATOR_DEVICE_SLOT"
"""Set for keepers and children, and inherited by what they start: the device's key and the slot."""
SPARE_BYTES: Final = 1 << 30
"""Memory in use that does not count as a job: a desktop's, the driver's, idle contexts'."""
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h
_MPS_SERVER: Final = "nvidia-cuda-mps-server"  # has a context on each GPU, but no job of its own
_LOOK_EVERY_S: Final = 0.1


def slot_environment(device: Device, slot: int) -> dict[str, str]:
    """Environment variables that identify a process and its descendants as users of this slot."""
    return {SLOT_VARIABLE: f"{device.key}/{slot}"}


def pids_are_ours() -> bool:
    """Whether the PIDs that NVML reports are those of this process's namespace."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def memory_is_ours() -> bool:
    """Whether the memory in use belongs to programs of this system.

    Under WSL it includes Windows.
    """
    return not Path("/dev/dxg").exists()


def strangers(nvml: Nvml, device: Device, *, held: bool) -> list[str]:
    """The processes that compute on the GPU but belong to no worker, in words.

    Empty if there is none, or if that cannot be known. A process that also draws counts as a
    desktop's unless it holds more than `SPARE_BYTES`. Where PIDs cannot be matched, more than
    `SPARE_BYTES` of memory in use counts as a foreign process.

    Args:
        held: Whether workers hold slots of the GPU, so that memory in use may be theirs.

    Raises:
        DeviceError: The GPU does not answer.
    """
    processes = nvml.processes(device)
    if processes is not None and pids_are_ours():
        jobs = [p for p in processes if p.computes and not _is_desktop(p)]
        foreign = [p for p in jobs if _slot_of(p.pid)[:1] != (device.key,)]
        return [text for p in foreign if (text := _label(p)) is not None]

    used = nvml.memory_in_use(device) if memory_is_ours() else None
    if held or used is None or used <= SPARE_BYTES:
        return []
    return [f"processes that are not visible from here ({_mib(used)})"]


def _is_desktop(process: GpuProcess) -> bool:
    return process.draws and (process.used_bytes or 0) <= SPARE_BYTES


class Occupancy:
    """The use of one GPU by the trials of this process, which holds the slot.

    Create it before the first trial.

    Args:
        alone: Whether nobody shares the GPU, so that all memory that comes into use is this slot's.
    """

    def __init__(self, nvml: Nvml, device: Device, slot: int, *, alone: bool) -> None:
        self._nvml = nvml
        self._device = device
        self._slot = slot
        self._alone = alone and memory_is_ours()
        self._at_first = self._unexplained()

    def check(self) -> None:
        """Returns if the GPU is present and answers.

        Raises:
            DeviceError: It fell off the bus, its MIG instance was destroyed, or its driver does not
                answer.
        """
        self._nvml.check(self._device)

    def wait_until_free(self, timeout_s: float, stop: threading.Event | None = None) -> str | None:
        """Returns None once the slot's trials have left the GPU and their memory is free again.

        After `timeout_s`, or when `stop` is set, it returns what is still there, in words. Where
        PIDs cannot be matched, the GPU counts as free when its memory is free; if others share it
        as well, that cannot be known, and it does not wait.

        Raises:
            DeviceError: The GPU does not answer.
        """
        stop = stop or threading.Event()
        give_up_at = time.monotonic() + timeout_s
        while (left := self._left()) is not None:
            pause_s = min(_LOOK_EVERY_S, give_up_at - time.monotonic())
            if pause_s <= 0 or stop.wait(pause_s):
                return left
        return None

    def used_bytes(self, pids: Collection[int] | None = None) -> int | None:
        """GPU memory in bytes that the processes `pids` hold now.

        Without `pids`, it is the memory of the slot's trial.

        Where PIDs cannot be matched, it is the memory that came into use since the slot was
        claimed, whatever `pids` are, or None if others share the GPU. Callers take the maximum as
        the peak.

        Raises:
            DeviceError: The GPU does not answer.
        """
        processes = self._nvml.processes(self._device)
        if processes is not None and pids_are_ours():
            ours = [
                p for p in processes if (p.pid in pids if pids is not None else self._is_trials(p))
            ]
            sizes = [p.used_bytes for p in ours if p.used_bytes is not None]
            return sum(sizes) if len(sizes) == len(ours) else None

        used = self._nvml.memory_in_use(self._device) if self._alone else None
        return None if used is None or self._at_first is None else max(0, used - self._at_first)

    def _left(self) -> str | None:
        """What trials of this slot have left on the GPU, in words; None if nothing."""
        processes = self._nvml.processes(self._device)
        if processes is not None and pids_are_ours():
            trials = [p for p in processes if self._is_trials(p)]
            labels = [text for p in trials if (text := _label(p)) is not None]
            if labels:
                return f"{self._device.label} is still used by {', '.join(labels)}"

        used = self._unexplained(processes)
        if used is None or self._at_first is None or used <= self._at_first + SPARE_BYTES:
            return None
        return f"{_mib(used - self._at_first)} of {self._device.label} have not been freed"

    def _unexplained(self, processes: list[GpuProcess] | None = None) -> int | None:
        """Memory in use that no process accounts for, in bytes; None if that cannot be known.

        Where PIDs cannot be matched, it is all memory in use.
        """
        if processes is None:
            processes = self._nvml.processes(self._device)
        used = self._nvml.memory_in_use(self._device)
        if processes is None or not pids_are_ours():
            return used if self._alone else None
        sizes = [p.used_bytes for p in processes]
        if used is None or None in sizes:
            return None
        return max(0, used - sum(size for size in sizes if size is not None))

    def _is_trials(self, process: GpuProcess) -> bool:
        """Whether it is a process of this slot's trials.

        Keepers, which are children of this process, are not.
        """
        # A keeper outlives the trial, and so does a context that the objective's import created in
        # it.
        if _slot_of(process.pid) != (self._device.key, str(self._slot)):
            return False
        try:
            parent: int = psutil.Process(process.pid).ppid()
            return parent != os.getpid()
        except psutil.Error:
            return False


def _slot_of(pid: int) -> tuple[str, ...]:
    """Device key and slot that the process was started for; () if it was not started by a worker.

    Its ancestors are consulted as well: a process can change its own environment.
    """
    try:
        process = psutil.Process(pid)
        line = [process, *process.parents()]
    except psutil.Error:
        return ()
    for one in line:
        try:
            value = one.environ().get(SLOT_VARIABLE)
        except (psutil.Error, OSError):  # it belongs to another user
            continue
        if value is not None:
            return tuple(value.rsplit("/", 1))
    return ()


def _label(process: GpuProcess) -> str | None:
    """The process for people; None if it has ended, or is not a job (the MPS server)."""
    name, user = "a process", ""
    try:
        seen = psutil.Process(process.pid)
        name = seen.name()
        user = seen.username()
    except psutil.NoSuchProcess:
        if not _exists(process.pid):
            return None
    except (psutil.Error, KeyError):  # this host has no name for its user
        pass
    if name == _MPS_SERVER:
        return None
    memory = None if process.used_bytes is None else _mib(process.used_bytes)
    return f"{name} ({', '.join(filter(None, (f'pid {process.pid}', user, memory)))})"


def _exists(pid: int) -> bool:
    """Whether the process exists; works even if ``/proc`` hides other users' processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"
