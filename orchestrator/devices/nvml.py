"""The only access to NVML: its answers as plain values, its errors as `DeviceError`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from orchestrator.devices.device import Device
from orchestrator.errors import DeviceError

_NO_ANSWER: Final = (
    # Older GPUs have no MIG, virtual ones list no processes, unified memory has no size.
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_FUNCTION_NOT_FOUND",  # an older driver
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
)


@dataclass(frozen=True)
class GpuProcess:
    """A process that NVML sees on a GPU, with the PID it has outside any container.

    `used_bytes` is None if NVML does not report it. `computes`: it has a CUDA context. `draws`: it
    has a graphics context, as a desktop has.
    """

    pid: int
    used_bytes: int | None
    computes: bool
    draws: bool


class Nvml:
    """An open connection to NVML, usable from any thread until `close`.

    GPUs are addressed by UUID, so renumbering them changes nothing here.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._no_answer = tuple(getattr(library, name) for name in _NO_ANSWER)

    @staticmethod
    def open() -> Nvml | None:
        """Opens NVML, or returns None on a host without an NVIDIA driver.

        Raises:
            DeviceError: The driver is installed but does not answer.
        """
        try:
            import pynvml as nvml
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            ):
                return None
            raise _no_driver(error) from error
        return Nvml(nvml)

    def close(self) -> None:
        """Closes the connection."""
        self._nvml.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def gpus(self) -> tuple[list[Device], list[str]]:
        """The GPUs that answer, by index, and the problems of the others, in words.

        A GPU in MIG mode is replaced by its instances.

        Raises:
            DeviceError: The driver does not answer, or none of the GPUs does.
        """
        found: list[Device] = []
        problems: list[str] = []
        broken: Exception | None = None
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise _no_driver(error) from error
        for index in range(count):
            try:
                here = self._gpu(index)
            except self._nvml.NVMLError as error:  # the others can still be used
                problems.append(f"GPU {index} does not answer: {error}")
                broken = error
            else:
                found += here
                if not here:
                    problems.append(f"GPU {index} is in MIG mode and has no instances")
        if broken is not None and not found:
            raise DeviceError(f"no NVIDIA GPU can be used: {'; '.join(problems)}") from broken
        return found, problems

    def check(self, device: Device) -> None:
        """Returns if the GPU is present and answers.

        Raises:
            DeviceError: It does not.
        """
        self._ask(device, self._nvml.nvmlDeviceGetMemoryInfo)

    def processes(self, device: Device) -> list[GpuProcess] | None:
        """The processes with a context on the GPU, by PID; None if NVML cannot list them.

        Raises:
            DeviceError: The GPU does not answer.
        """
        computing = self._ask(device, self._nvml.nvmlDeviceGetComputeRunningProcesses)
        if computing is None:
            return None
        drawing = self._ask(device, self._nvml.nvmlDeviceGetGraphicsRunningProcesses) or []
        used = {p.pid: p.usedGpuMemory for p in [*drawing, *computing]}
        computes, draws = {p.pid for p in computing}, {p.pid for p in drawing}
        return [GpuProcess(pid, used[pid], pid in computes, pid in draws) for pid in sorted(used)]

    def memory_in_use(self, device: Device) -> int | None:
        """Allocated GPU memory in bytes, without the driver's own reserve.

        None if NVML does not report it.

        Raises:
            DeviceError: The GPU does not answer.
        """
        info = self._ask(
            device, partial(self._nvml.nvmlDeviceGetMemoryInfo, version=self._nvml.nvmlMemory_v2)
        )
        if info is not None:
            return int(info.total - info.free - info.reserved)
        info = self._ask(device, self._nvml.nvmlDeviceGetMemoryInfo)
        return None if info is None else int(info.used)

    def driver(self) -> tuple[str, str]:
        """The versions of the driver and of the newest CUDA it supports: ``580.159.04``, ``13.0``.

        Raises:
            DeviceError: The driver does not answer.
        """
        try:
            cuda = self._nvml.nvmlSystemGetCudaDriverVersion()
            return _text(
                self._nvml.nvmlSystemGetDriverVersion()
            ), f"{cuda // 1000}.{cuda % 1000 // 10}"
        except self._nvml.NVMLError as error:
            raise _no_driver(error) from error

    def _ask(self, device: Device, query: Callable[[Any], Any]) -> Any:
        """The GPU's answer, or None if it does not support the query."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(device.key)
            return self._optional(partial(query, handle))
        except self._nvml.NVMLError as error:
            gone = error.value == self._nvml.NVML_ERROR_NOT_FOUND
            problem = "has disappeared" if gone else f"does not answer: {error}"
            raise DeviceError(f"{device.label} {problem}") from error

    def _optional(self, query: Callable[[], Any]) -> Any:
        try:
            return query()
        except self._nvml.NVMLError as error:
            if error.value in self._no_answer:
                return None
            raise

    def _gpu(self, index: int) -> list[Device]:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(nvml.nvmlDeviceGetName(handle))
        mode = self._optional(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != nvml.NVML_DEVICE_MIG_ENABLE:
            return [self._device(handle, index, name)]
        instances = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            instance = self._optional(
                partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            )
            if instance is not None:
                instances.append(self._device(instance, index, name))
        return instances

    def _device(self, handle: Any, index: int, name: str) -> Device:
        memory = self._optional(lambda: int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total))
        return Device(_text(self._nvml.nvmlDeviceGetUUID(handle)), index, name, memory, "gpu")


def _no_driver(error: Exception) -> DeviceError:
    return DeviceError(f"the NVIDIA driver does not answer: {error}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings return bytes
