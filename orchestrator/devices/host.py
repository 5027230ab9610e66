"""This host: what tells it from others, and how many of its cores are ours."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def host_identity() -> str:
    """What all containers of this machine have in common, until it reboots: to tell its GPUs from those of other machines."""
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with suppress(OSError):
            if text := Path(path).read_text().strip():
                return text
    return socket.gethostname()


def cpu_scope() -> str:
    """Who shares CPU slots: the processes of one container, or of the machine outside any (the same host and pid namespace)."""
    try:
        return f"{host_identity()}/pid-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - a link that leads nowhere
    except OSError:
        return host_identity()


def usable_cores() -> int:
    """How many CPU cores this process may use: those of the machine, less what affinity and container limits take away."""
    import joblib  # slow to import, and only workers ask

    return int(joblib.cpu_count())
