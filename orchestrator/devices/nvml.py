"""The one door to NVML, the library of the NVIDIA driver: its answers as plain values, its errors
as `DeviceError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from orchestrator.devices.device import Device
from orchestrator.errors import DeviceError

_NO_ANSWER: Final = (
    # older GPUs know no MIG, virtual ones no processes, unified memory no size
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_FUNCTION_NOT_FOUND",  # an older driver
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
)


@dataclass(frozen=True)
class GpuProcess:
    """A process that NVML sees on a GPU, by the PID it has outside any container; `used_bytes` None
    where NVML does not say.

    `computes`: it has a CUDA context. `draws`: it has a graphics one, as what fills a screen does.
    """

    pid: int
    used_bytes: int | None
    computes: bool
    draws: bool


class Nvml:
    """NVML, opened; for any thread, until `close`. GPUs go by their UUIDs, so nothing here changes
    when they are renumbered.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._no_answer = tuple(getattr(library, name) for name in _NO_ANSWER)

    @staticmethod
    def open() -> Nvml | None:
        """Opens it, or returns None on a host without an NVIDIA driver.

        Raises:
            DeviceError: The driver is there and does not answer.
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
        """Lets go of it."""
        self._nvml.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def gpus(self) -> tuple[list[Device], list[str]]:
        """Every GPU that answers, by index, one in MIG mode replaced by its instances; and what
        there is to say of the others.

        Raises:
            DeviceError: The driver does not answer, or not for a single GPU.
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
            except self._nvml.NVMLError as error:  # the others go on without it
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
        """Returns if the GPU is there and answers.

        Raises:
            DeviceError: It does not.
        """
        self._ask(device, self._nvml.nvmlDeviceGetMemoryInfo)

    def processes(self, device: Device) -> list[GpuProcess] | None:
        """Who has a context on the GPU, by PID; None where NVML cannot tell.

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
        """Bytes of the GPU's memory that are allocated, without what the driver keeps for itself;
        None where NVML cannot tell.

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
        """The versions of the driver and of the newest CUDA it runs, such as ``580.159.04`` and
        ``13.0``.

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

    def _ask(self, device: Device, question: Callable[[Any], Any]) -> Any:
        """The GPU's answer, or None where it has none to give."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(device.key)
            return self._optional(partial(question, handle))
        except self._nvml.NVMLError as error:
            gone = error.value == self._nvml.NVML_ERROR_NOT_FOUND
            raise DeviceError(
                f"{device.label} {'is no longer there' if gone else f'does not answer: {error}'}"
            ) from error

    def _optional(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
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
    return value.decode() if isinstance(value, bytes) else value  # bytes in old bindings
