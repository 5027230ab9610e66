"""This host: its identity, and the cores and memory that this process may use."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def host_identity() -> str:
    """An identifier of this machine, the same in all its containers, until it reboots.

    It tells this machine's GPUs from those of other machines.
    """
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with suppress(OSError):
            if text := Path(path).read_text().strip():
                return text
    return socket.gethostname()


def cpu_scope() -> str:
    """An identifier for the processes that share CPU slots: those of one host and PID namespace.

    So each container has CPU slots of its own, and so has the machine outside any container.
    """
    try:
        return f"{host_identity()}/pid-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - a magic link
    except OSError:
        return host_identity()


def usable_cores() -> int:
    """How many CPU cores this process may use, considering affinity and container limits."""
    import joblib  # slow to import, and only workers need it

    return int(joblib.cpu_count())


def physical_memory() -> int | None:
    """The machine's memory (RAM) in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def usable_memory() -> int:
    """The memory (RAM) this process may use, in bytes: the machine's, or a lower container limit.

    0 if neither is known. Limits are ``memory.max`` (cgroup v2) and ``memory.limit_in_bytes`` (v1)
    of this process's control group and of those above it.
    """
    limits = [physical_memory() or 0]
    try:
        entries = [
            line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()
        ]
    except OSError:
        entries = []
    for _, controllers, group in entries:
        mount, name = "/sys/fs/cgroup", "memory.max"
        if controllers:  # an entry of cgroup v1
            mount, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
            if "memory" not in controllers.split(","):
                continue
        folder = Path(mount, group.lstrip("/"))
        for above in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such file, or ``max``
                limits.append(int((above / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=0)
