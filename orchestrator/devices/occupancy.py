"""Who uses a GPU: strangers, before a slot of it is taken; what a trial left behind, before the
next one begins.

NVML names processes by the PIDs they have outside any container. Where this process has those PIDs
too, each process is known: ours, and what they start, carry `SLOT_VARIABLE` in their environment.
Inside a container only the memory in use tells.
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
"""Set for keeper and child, and so for what they start: the device's key and the slot."""
SPARE_BYTES: Final = 1 << 30
"""Memory in use that is nobody's job: a screen's, the driver's own, that of contexts which wait."""
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h
_MPS_SERVER: Final = "nvidia-cuda-mps-server"  # it has a context on each GPU, and no job of its own
_LOOK_EVERY_S: Final = 0.1


def slot_environment(device: Device, slot: int) -> dict[str, str]:
    """What makes a process, and those it starts, known as a user of this slot."""
    return {SLOT_VARIABLE: f"{device.key}/{slot}"}


def pids_tell() -> bool:
    """Whether the PIDs that NVML gives are those of this process's namespace."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def memory_tells() -> bool:
    """Whether memory in use is that of programs on this system: under WSL it is that of Windows
    too.
    """
    return not Path("/dev/dxg").exists()


def strangers(nvml: Nvml, device: Device, *, held: bool) -> list[str]:
    """In words, who computes on the GPU and is no trial of any worker; empty if it is idle, or
    nobody can tell.

    What draws as well is taken for a screen's unless it holds more than `SPARE_BYTES`. Where PIDs
    do not tell, so much memory in use is somebody's.

    Args:
        held: Whether workers hold slots of it: then memory in use may be theirs.

    Raises:
        DeviceError: The GPU does not answer.
    """
    processes = nvml.processes(device)
    if processes is not None and pids_tell():
        jobs = [
            p
            for p in processes
            if p.computes and not (p.draws and (p.used_bytes or 0) <= SPARE_BYTES)
        ]
        return [
            text
            for p in jobs
            if _slot_of(p.pid)[:1] != (device.key,) and (text := _who(p)) is not None
        ]
    used = nvml.memory_in_use(device) if memory_tells() else None
    if held or used is None or used <= SPARE_BYTES:
        return []
    return [f"processes that are not seen from here ({_mib(used)})"]


class Occupancy:
    """The use of one GPU by the slot's holder, this process; from when the slot was taken, with no
    trial running.

    Args:
        alone: Whether all memory that comes into use is this slot's: nobody shares the GPU.
    """

    def __init__(self, nvml: Nvml, device: Device, slot: int, *, alone: bool) -> None:
        self._nvml = nvml
        self._device = device
        self._slot = slot
        self._alone = alone and memory_tells()
        self._at_first = self._unexplained()

    def check(self) -> None:
        """Returns if the GPU is there and answers.

        Raises:
            DeviceError: It fell off the bus, its MIG instance was taken apart, or its driver does
                not answer.
        """
        self._nvml.check(self._device)

    def wait_until_free(self, timeout_s: float, stop: threading.Event | None = None) -> str | None:
        """Returns None once no process of the slot's trials is on the GPU and their memory is free
        again.

        After `timeout_s`, or when `stop` is set, it returns in words what is still there. Where
        PIDs do not tell, the GPU is free when its memory is, and if others share it nobody can
        tell: then it does not wait.

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
        """GPU memory that `pids` hold now, of those that are on the GPU; without them, what the
        slot's trial holds.

        Where PIDs do not tell, `pids` are not looked at: it is what came into use since the slot
        was taken. None where nobody can tell, as when others share the GPU then. The peak is the
        largest of several answers.

        Raises:
            DeviceError: The GPU does not answer.
        """
        processes = self._nvml.processes(self._device)
        if processes is not None and pids_tell():
            mine = [
                p for p in processes if (p.pid in pids if pids is not None else self._is_trials(p))
            ]
            sizes = [p.used_bytes for p in mine if p.used_bytes is not None]
            return sum(sizes) if len(sizes) == len(mine) else None
        used = self._nvml.memory_in_use(self._device) if self._alone else None
        return None if used is None or self._at_first is None else max(0, used - self._at_first)

    def _left(self) -> str | None:
        processes = self._nvml.processes(self._device)
        if processes is not None and pids_tell():
            who = [text for p in processes if self._is_trials(p) and (text := _who(p)) is not None]
            if who:
                return f"{self._device.label} is still used by {', '.join(who)}"
        more = self._unexplained(processes)
        if more is None or self._at_first is None or more <= self._at_first + SPARE_BYTES:
            return None
        return f"{_mib(more - self._at_first)} of {self._device.label} are not free again"

    def _unexplained(self, processes: list[GpuProcess] | None = None) -> int | None:
        """Memory in use that no process accounts for; all of it where PIDs do not tell. None where
        nobody can tell.
        """
        if processes is None:
            processes = self._nvml.processes(self._device)
        used = self._nvml.memory_in_use(self._device)
        if processes is None or not pids_tell():
            return used if self._alone else None
        sizes = [p.used_bytes for p in processes]
        if used is None or None in sizes:
            return None
        return max(0, used - sum(size for size in sizes if size is not None))

    def _is_trials(self, process: GpuProcess) -> bool:
        """Not the keepers, this process's children: they live on, and so does a context that an
        import made in one.
        """
        if _slot_of(process.pid) != (self._device.key, str(self._slot)):
            return False
        try:
            parent: int = psutil.Process(process.pid).ppid()
            return parent != os.getpid()
        except psutil.Error:
            return False


def _slot_of(pid: int) -> tuple[str, ...]:
    """Device key and slot that the process was started for; ancestors are asked, for a process may
    have hidden it. Else ().
    """
    try:
        process = psutil.Process(pid)
        line = [process, *process.parents()]
    except psutil.Error:
        return ()
    for one in line:
        try:
            value = one.environ().get(SLOT_VARIABLE)
        except (psutil.Error, OSError):  # another user's
            continue
        if value is not None:
            return tuple(value.rsplit("/", 1))
    return ()


def _who(process: GpuProcess) -> str | None:
    """For people; None for one that has ended, and for what is nobody's job."""
    name, user = "a process", ""
    try:
        seen = psutil.Process(process.pid)
        name = seen.name()
        user = seen.username()
    except psutil.NoSuchProcess:
        if not _exists(process.pid):
            return None
    except (psutil.Error, KeyError):  # a user that this host has no name for
        pass
    if name == _MPS_SERVER:
        return None
    memory = None if process.used_bytes is None else _mib(process.used_bytes)
    return f"{name} ({', '.join(filter(None, (f'pid {process.pid}', user, memory)))})"


def _exists(pid: int) -> bool:
    """Also where ``/proc`` hides other users' processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"
