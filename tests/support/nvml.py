"""A scripted NVML in place of the driver: GPUs, MIG instances, who is on them, and GPUs that fall
off the bus.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import psutil
import pynvml
import pytest

from tests.support.waiting import wait_until

GIB = 1 << 30


@dataclass
class FakeNvml:
    """As much of pynvml as is used; a handle is a UUID. Constants and errors are pynvml's own.

    `computing` and `drawing` are the processes on each UUID, PID to bytes (None: NVML does not
    say); `in_use` is the memory that is allocated beside theirs, `reserved` the driver's own.
    """

    uuids: list[str] = field(default_factory=list)
    instances: dict[int, list[str]] = field(default_factory=dict)  # GPUs in MIG mode, by index
    init_error: int | None = None
    sizeless: bool = False
    old_driver: bool = False
    no_processes: bool = False
    lost: set[str] = field(default_factory=set)
    computing: dict[str, dict[int, int | None]] = field(default_factory=dict)
    drawing: dict[str, dict[int, int | None]] = field(default_factory=dict)
    in_use: dict[str, int] = field(default_factory=dict)
    reserved: int = 600 << 20
    open: int = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML", "nvmlMemory_v2")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def install(self, patch: pytest.MonkeyPatch) -> Self:
        """Puts it in place of the library, with every GPU visible."""
        patch.setitem(sys.modules, "pynvml", self)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return self

    def _answer(self, uuid: str) -> str:
        if uuid in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return uuid

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.04"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13020

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self._answer(self.uuids[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in [
            *self.uuids,
            *(name for names in self.instances.values() for name in names),
        ]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid  # of a lost GPU too: the library knows it from before

    def nvmlDeviceGetName(self, uuid: str) -> bytes:  # noqa: N802
        return b"NVIDIA H100"

    def nvmlDeviceGetUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetMemoryInfo(self, uuid: str, version: int | None = None) -> SimpleNamespace:  # noqa: N802
        self._answer(uuid)
        if self.sizeless:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if version and self.old_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        total = 80 * GIB if uuid in self.uuids else 10 * GIB
        held = self.computing.get(uuid, {}) | self.drawing.get(uuid, {})
        used = self.in_use.get(uuid, 0) + sum(size or 0 for size in held.values())
        if version is None:
            return SimpleNamespace(total=total, free=total - used, used=used)
        taken = used + self.reserved
        return SimpleNamespace(total=total, reserved=self.reserved, free=total - taken, used=taken)

    def _processes(
        self, uuid: str, found: dict[str, dict[int, int | None]]
    ) -> list[SimpleNamespace]:
        self._answer(uuid)
        if self.no_processes:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=size)
            for pid, size in found.get(uuid, {}).items()
        ]

    def nvmlDeviceGetComputeRunningProcesses(self, uuid: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(uuid, self.computing)

    def nvmlDeviceGetGraphicsRunningProcesses(self, uuid: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(uuid, self.drawing)

    def nvmlDeviceGetMigMode(self, uuid: str) -> list[int]:  # noqa: N802
        if not self.instances:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(self.uuids.index(uuid) in self.instances), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, uuid: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, uuid: str, number: int) -> str:  # noqa: N802
        there = self.instances[self.uuids.index(uuid)]
        if number >= len(there):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return there[number]


@contextmanager
def process(environment: dict[str, str], command: str = "sleep 300") -> Iterator[int]:
    """A process that is not this one's child; `environment` is that of its parent too."""
    shell = subprocess.Popen(
        ["sh", "-c", f"{command} & echo $!; wait"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    wait_until(lambda: psutil.Process(pid).name() not in ("sh", "dash", "bash", "env"))
    try:
        yield pid
    finally:
        psutil.Process(pid).kill()
        shell.communicate()
