"""The devices of this host: GPUs by UUID, or its CPU; how a child process is pinned to one, and a lock on each slot."""

from __future__ import annotations

import fcntl
import fnmatch
import importlib
import os
import re
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.errors import DeviceError

_WILDCARDS: Final = frozenset("*?[")


@dataclass(frozen=True)
class Device:
    """One GPU (or MIG instance, with the index of its GPU), or the CPU.

    `key` is the UUID, or ``cpu``; `index` NVML's, which is ``nvidia-smi``'s; `memory_bytes` None where NVML does not say.
    """

    key: str
    index: int | None
    name: str
    memory_bytes: int | None
    kind: Literal["gpu", "cpu"]


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


def usable_memory() -> int:
    """How much memory (RAM) this process may use, in bytes: the machine's, or its container's limit if less; 0: not known.

    Sources: ``memory.max`` (cgroup v2) and ``memory.limit_in_bytes`` (v1) of this process's control group and those above it.
    """
    limits = [_physical_memory() or 0]
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        entries = []
    for _, controllers, group in entries:
        mount, name = (
            ("/sys/fs/cgroup", "memory.max") if not controllers else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = Path(mount, group.lstrip("/"))
        for above in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # none there, or ``max``
                limits.append(int((above / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=0)


def discover(selection: Sequence[str | int] | None) -> list[Device]:
    """The devices of this host that this process may use and `selection` names; without GPUs, the CPU.

    ``CUDA_VISIBLE_DEVICES`` set outside limits what there is, read as CUDA reads it with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``:
    indices count in NVML's order, and the first entry that names nothing hides all later ones.

    Args:
        selection: Indices as in ``nvidia-smi``, UUIDs or their beginnings, patterns with ``*``, ``cpu``; None for every GPU.

    Raises:
        DeviceError: An entry names nothing (the message lists what there is), or the NVIDIA driver is there and broken.
    """
    gpus = _visible(_list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    cpu = Device("cpu", None, "CPU", _physical_memory(), "cpu")
    if selection is None:
        return gpus or [cpu]
    chosen: dict[str, Device] = {}
    for entry in selection:
        found = [device for device in [*gpus, cpu] if _matches(device, entry)]
        if not found:
            there = ", ".join(f"{gpu.index}: {gpu.key} ({gpu.name})" for gpu in gpus) or "no GPU"
            raise DeviceError(f"worker.devices: {entry!r} names no device of this host; there is {there}, and cpu")
        chosen |= {device.key: device for device in found}
    return list(chosen.values())


def child_environment(device: Device) -> dict[str, str]:
    """Environment variables that leave a process exactly this device; on a CPU, no GPU at all."""
    if device.kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": device.key, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def torch_device(device: Device) -> str:
    """What torch calls the device in a process with its `child_environment`."""
    return "cpu" if device.kind == "cpu" else "cuda:0"


class DeviceLock:
    """A lock on one slot of one device of this host, for this user: the second fence beside the lease in the database.

    The lock belongs to the open file, so every process that inherits the descriptor (`fileno`) holds it too, and it ends
    when the last of them is gone, however it went. Containers with a ``/tmp`` of their own have locks of their own.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @staticmethod
    def acquire(key: str, slot: int = 0, directory: Path | None = None) -> DeviceLock | None:
        """Takes the lock, or returns None when another process has it; it never waits.

        Args:
            key: The device's key.
            slot: Which share of it, from 0.
            directory: Where the lock files are; default ``/tmp/orchestrator-<uid>/locks``.

        Raises:
            DeviceError: The directory cannot be made, or belongs to somebody else.
        """
        folder = _lock_directory() if directory is None else directory
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', key)}-{slot}.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            os.close(descriptor)  # somebody deleted the file between open and lock: this lock would exclude nobody
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # for people
        return DeviceLock(descriptor)

    def fileno(self) -> int:
        """The descriptor to hand to children that shall hold the lock as well."""
        if self._descriptor is None:
            raise ValueError("the lock was released")
        return self._descriptor

    def release(self) -> None:
        """Lets go of the lock in this process; children that inherited it keep it. Calling it again is allowed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock_directory() -> Path:
    # Not TMPDIR, which batch systems set for each job: all workers of this user on this host must find the same place.
    root = Path("/tmp") / f"orchestrator-{os.getuid()}"
    folder = root / "locks"
    try:
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise DeviceError(f"{path}: not a directory of this user, so the device locks in it cannot be trusted")
            path.chmod(0o700)
    except OSError as error:
        raise DeviceError(f"{folder}: the directory for device locks cannot be made: {error}") from error
    return folder


# ------------------------------------------------------------------------------------------------------------------------ NVML


def _list_gpus() -> list[Device]:
    """Every GPU that NVML sees, by index; a GPU in MIG mode is replaced by its instances. Empty without a driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return []
        raise DeviceError(f"the NVIDIA driver does not answer: {error}") from error
    try:
        count = nvml.nvmlDeviceGetCount()
        return [device for index in range(count) for device in _gpu(nvml, index)]
    except nvml.NVMLError as error:
        raise DeviceError(f"the NVIDIA driver does not answer: {error}") from error
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> list[Device]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = _text(nvml.nvmlDeviceGetName(handle))
    mode = _optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return [_device(nvml, handle, index, name)]
    instances = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        instance = _optional(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
        if instance is not None:
            instances.append(_device(nvml, instance, index, name))
    return instances


def _device(nvml: Any, handle: Any, index: int, name: str) -> Device:
    memory = _optional(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    return Device(_text(nvml.nvmlDeviceGetUUID(handle)), index, name, memory, "gpu")


def _optional(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer, or None where this device has none to give (older GPUs know no MIG, unified memory no size)."""
    try:
        return ask()
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT):
            return None
        raise


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes in old bindings


# ------------------------------------------------------------------------------------------------------------------- selection


def _visible(gpus: list[Device], variable: str | None) -> list[Device]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in its order (CUDA Programming Guide, environment variables)."""
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


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
