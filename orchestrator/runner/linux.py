"""What the runner asks of the Linux kernel; on other systems each of these does nothing and says so by its result."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Final

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_PREFERENCE: Final = 500


def die_with_parent(signum: signal.Signals, parent_pid: int) -> None:
    """From here on the kernel sends this process `signum` when its parent dies; exits at once if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant whose own parent dies, in whatever session it is."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def own_children() -> set[int]:
    """The process ids of this process's direct children, zombies included; empty where the kernel does not list them."""
    try:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    except OSError:
        return set()
    return {int(pid) for pid in text.split()}


def native_threads() -> int:
    """How many threads this process has, those started by libraries included; 1 where that cannot be read."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 1


def uses_cuda_memory() -> bool:
    """Whether the CUDA driver was initialised in this process: nothing else opens the unified-memory device."""
    try:
        return any(fd.readlink() == Path("/dev/nvidia-uvm") for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())
    except OSError:
        return False


def prefer_for_oom() -> None:
    """Makes the kernel's out-of-memory killer choose this process and its children before the worker and the keeper."""
    path = Path("/proc/self/oom_score_adj")
    try:
        path.write_text(str(max(int(path.read_text()), _OOM_PREFERENCE)))
    except (OSError, ValueError):
        return


def oom_kills() -> int:
    """A count that grows when the out-of-memory killer runs in our control group or on this machine; 0 if unreadable.

    Sources: ``oom_kill`` of memory.events (cgroup v2), of memory.oom_control (v1) and of /proc/vmstat.
    """
    files = [Path("/proc/vmstat")]
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        entries = []
    for entry in entries:
        _, controllers, group = entry.split(":", 2)
        if not controllers:
            files.append(_control_file(Path("/sys/fs/cgroup"), group, "memory.events"))
        elif "memory" in controllers.split(","):
            files.append(_control_file(Path("/sys/fs/cgroup/memory"), group, "memory.oom_control"))
    return sum(_read_counter(file, "oom_kill") for file in files)


def peak_bytes(usage: resource.struct_rusage) -> int:
    """The most memory that was resident at once, in bytes: the kernel counts kilobytes, macOS bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _control_file(mount: Path, group: str, name: str) -> Path:
    file = mount / group.lstrip("/") / name
    # Inside a container without a cgroup namespace the path is the host's, and the mount shows our group at its root.
    return file if file.exists() else mount / name


def _read_counter(file: Path, key: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{key} "))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
