"""What the runner needs from the Linux kernel.

On other systems, these do nothing and return a neutral result.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Final

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# include/uapi/asm-generic/mman-common.h
_MADV_COLLAPSE: Final = 25
_HUGE_PAGE: Final = 2 << 20
_OOM_PREFERENCE: Final = 500


def die_with_parent(signum: signal.Signals, parent_pid: int) -> None:
    """From now on, the kernel sends this process `signum` when its parent dies.

    Exits at once if it already has.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies, in any session."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def gather_pages() -> None:
    """Moves this process's memory into huge pages: halves the time to fork and to end a fork.

    Has no effect before Linux 6.1, or where no huge page is available.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    madvise = _libc().madvise
    for line in lines:
        span, rights, _, _, inode, *name = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if (
            rights == "rw-p"
            and inode == "0"
            and name in ([], ["[heap]"])
            and end - start >= _HUGE_PAGE
        ):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)


def own_children() -> set[int]:
    """The PIDs of this process's direct children, including zombies.

    Empty if the kernel does not list them.
    """
    try:
        pids = _read(f"/proc/self/task/{threading.get_native_id()}/children")
    except OSError:
        return set()
    return {int(pid) for pid in pids.split()}


def runs(pid: int) -> bool:
    """Whether the process exists and has neither ended nor been stopped.

    True if that cannot be known.
    """
    try:
        state = _fields(pid)[0]
    except OSError:
        return not Path("/proc/self/stat").exists()
    return state not in (b"T", b"t", b"Z", b"X")


def native_threads() -> int:
    """How many threads this process has, including those of libraries; 1 if that cannot be read."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 1


def uses_cuda_memory() -> bool:
    """Whether the CUDA driver was initialised in this process.

    Only the driver opens the unified-memory device.
    """
    try:
        return any(
            fd.readlink() == Path("/dev/nvidia-uvm")
            for fd in Path("/proc/self/fd").iterdir()
            if fd.is_symlink()
        )
    except OSError:
        return False


def prefer_for_oom() -> None:
    """Makes the out-of-memory killer prefer this process and its children to worker and keeper."""
    path = "/proc/self/oom_score_adj"
    with contextlib.suppress(OSError, ValueError):
        preference = max(int(_read(path)), _OOM_PREFERENCE)
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, str(preference).encode())
        finally:
            os.close(descriptor)


def used(pid: int) -> tuple[int, float]:
    """The peak resident size of a living process so far in bytes, and its `cpu_s`."""
    with contextlib.suppress(OSError):
        peak = re.search(rb"^VmHWM:\s+(\d+) kB", _read(f"/proc/{pid}/status"), re.MULTILINE)
        return (int(peak[1]) * 1024 if peak else 0), cpu_s(pid)
    return 0, 0.0


def cpu_s(pid: int) -> float:
    """The processor time of a living process and its reaped children in seconds; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = sum(int(field) for field in _fields(pid)[11:15])  # utime, stime, cutime, cstime
        return ticks / os.sysconf("SC_CLK_TCK")
    return 0.0


def oom_kills() -> int:
    """How often the out-of-memory killer acted, in this group or on this machine; 0 if unreadable.

    It is the sum of ``oom_kill`` in memory.events (cgroup v2), memory.oom_control (v1) and
    /proc/vmstat.
    """
    files = ["/proc/vmstat"]
    try:
        entries = _read("/proc/self/cgroup").decode().splitlines()
    except OSError:
        entries = []
    for entry in entries:
        _, controllers, group = entry.split(":", 2)
        if not controllers:
            files.append(_control_file("/sys/fs/cgroup", group, "memory.events"))
        elif "memory" in controllers.split(","):
            files.append(_control_file("/sys/fs/cgroup/memory", group, "memory.oom_control"))
    return sum(_read_counter(file, "oom_kill") for file in files)


def _control_file(mount: str, group: str, name: str) -> str:
    file = f"{mount}/{group.strip('/')}/{name}"
    # In a container without its own cgroup namespace, the path is the host's, while the mount has
    # this container's group as its root.
    return file if os.path.exists(file) else f"{mount}/{name}"  # noqa: PTH110 - runs in every attempt


def _read_counter(file: str, key: str) -> int:
    try:
        content = _read(file)
    except OSError:
        return 0
    found = re.search(rf"^{key} (\d+)".encode(), content, re.MULTILINE)
    return int(found[1]) if found else 0


def _fields(pid: int) -> list[bytes]:
    """The fields of the process's ``stat`` after its name; the first one is its state."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    """The content of a kernel file.

    A trial reads a dozen of them, and pathlib takes longer than the kernel.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(option, value, 0, 0, 0)


@cache
def _libc() -> ctypes.CDLL:
    """The C library; cached, because each CDLL creates a new class. Forks inherit the keeper's."""
    return ctypes.CDLL(None)
