"""This host: what tells it from others, and how many of its cores are ours."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def host_identity() -> str:
    """What all containers of this machine have in common, until it reboots: to tell its GPUs from
    those of other machines.
    """
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with suppress(OSError):
            if text := Path(path).read_text().strip():
                return text
    return socket.gethostname()


def cpu_scope() -> str:
    """Who shares CPU slots: the processes of one container, or of the machine outside any (the same
    host and pid namespace).
    """
    try:
        return f"{host_identity()}/pid-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - a link that leads nowhere
    except OSError:
        return host_identity()


def usable_cores() -> int:
    """How many CPU cores this process may use: those of the machine, less what affinity and
    container limits take away.
    """
    import joblib  # slow to import, and only workers ask

    return int(joblib.cpu_count())


def physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def usable_memory() -> int:
    """How much memory (RAM) this process may use, in bytes: the machine's, or its container's limit
    if less; 0: not known.

    Sources: ``memory.max`` (cgroup v2) and ``memory.limit_in_bytes`` (v1) of this process's control
    group and those above it.
    """
    limits = [physical_memory() or 0]
    try:
        entries = [
            line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()
        ]
    except OSError:
        entries = []
    for _, controllers, group in entries:
        mount, name = (
            ("/sys/fs/cgroup", "memory.max")
            if not controllers
            else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = Path(mount, group.lstrip("/"))
        for above in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # none there, or ``max``
                limits.append(int((above / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=0)
