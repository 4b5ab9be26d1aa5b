"""Asks the driver's management library about a GPU; the only importer of pynvml."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offload.errors import DeviceUnavailableError


@dataclass(frozen=True)
class GpuMemory:
    """A GPU as the driver sees it; memory in bytes, all processes together."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class GpuSeen:
    """A GPU in the driver's list; None for each thing that this GPU or this driver does not tell."""

    name: str | None
    free_bytes: int | None
    total_bytes: int | None
    compute_capability: tuple[int, int] | None


@dataclass(frozen=True)
class Driver:
    """The driver, the newest CUDA (major, minor) that it serves, and the GPUs that it sees."""

    version: str | None
    cuda_version: tuple[int, int] | None
    gpus: tuple[GpuSeen, ...]


def driver() -> Driver:
    """Everything the driver tells, item by item. Raises DeviceUnavailableError when there is none."""
    pynvml = _start()
    try:
        cuda = _ask(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return Driver(
            version=_text(_ask(pynvml, pynvml.nvmlSystemGetDriverVersion)),
            cuda_version=None if cuda is None else (int(cuda) // 1000, int(cuda) % 1000 // 10),
            gpus=tuple(_look_at(pynvml, index) for index in range(_ask(pynvml, pynvml.nvmlDeviceGetCount) or 0)),
        )
    finally:
        pynvml.nvmlShutdown()


def gpu(ordinal: int, pci_bus_id: str | None = None) -> GpuMemory:
    """The GPU at this place of the bus, else that with this number in the driver's order.

    Raises DeviceUnavailableError with the reason.
    """
    pynvml = _start()
    try:
        if pci_bus_id is not None:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        elif ordinal < (count := pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(ordinal)
        else:
            raise DeviceUnavailableError(f"there is no GPU {ordinal}; the driver sees {count}")
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuMemory(str(pynvml.nvmlDeviceGetName(handle)), int(memory.free), int(memory.total))
    except pynvml.NVMLError as error:
        raise DeviceUnavailableError(f"the NVIDIA driver does not tell about GPU {ordinal} ({error})") from None
    finally:
        pynvml.nvmlShutdown()


class NvmlGpu:
    """One GPU that is asked again and again. Raises DeviceUnavailableError where there is no NVML, or not this GPU.

    Every question may be refused on its own: then its answer is None from there on, and `refusals` has the reason, by
    the name of the question. Any thread may ask.
    """

    def __init__(self, pci_bus_id: str) -> None:
        self.refusals: dict[str, str] = {}
        self._pynvml = pynvml = _start()
        self._errors = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except self._errors as error:
            self.close()
            raise DeviceUnavailableError(f"the NVIDIA driver does not tell about GPU {pci_bus_id} ({error})") from None

    def used_bytes(self) -> int | None:
        """Memory in use by every process together."""
        memory = self._ask("memory", self._pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        return None if memory is None else int(memory.used)

    def process_bytes(self) -> int | None:
        """Memory in use by this process: its context and everything in it.

        In a container the driver may know this process by another number or not show it; under WDDM (and WSL) it does
        not tell what one process takes.
        """
        processes = self._ask("process memory", self._pynvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        if processes is None:
            return None
        own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not own:
            self.refusals["process memory"] = "the driver does not list this process"
        elif own[0] is None:
            self.refusals["process memory"] = "the driver does not tell it by process"
        return None if not own or own[0] is None else int(own[0])

    def utilisation(self) -> tuple[float, float] | None:
        """The shares of time, 0 to 1, in which a kernel ran and in which its memory was read or written, lately."""
        rates = self._ask("utilisation", self._pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        return None if rates is None else (rates.gpu / 100, rates.memory / 100)

    def pcie_bytes_per_s(self) -> tuple[float, float] | None:
        """Measure the GPU's traffic on the bus; the driver counts for 20 ms each way, and the caller waits."""
        counters = (self._pynvml.NVML_PCIE_UTIL_RX_BYTES, self._pynvml.NVML_PCIE_UTIL_TX_BYTES)
        function = self._pynvml.nvmlDeviceGetPcieThroughput
        kilobytes = [self._ask("PCIe throughput", function, self._handle, counter) for counter in counters]
        return None if None in kilobytes else (kilobytes[0] * 1e3, kilobytes[1] * 1e3)

    def close(self) -> None:
        """Nothing can be asked afterwards."""
        self._pynvml.nvmlShutdown()

    def _ask(self, question: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if question in self.refusals:
            return None
        try:
            return function(*arguments)
        except self._errors as error:
            self.refusals[question] = str(error)
            return None


def _start() -> Any:
    """The library, initialised; the caller shuts it down. Raises DeviceUnavailableError."""
    try:
        import pynvml
    except ImportError:
        raise DeviceUnavailableError("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        why = "" if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else f" ({error})"
        raise DeviceUnavailableError(f"no NVIDIA driver found{why}") from None
    return pynvml


def _look_at(pynvml: Any, index: int) -> GpuSeen:
    handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return GpuSeen(None, None, None, None)
    memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuSeen(
        name=_text(_ask(pynvml, pynvml.nvmlDeviceGetName, handle)),
        free_bytes=None if memory is None else int(memory.free),
        total_bytes=None if memory is None else int(memory.total),
        compute_capability=_ask(pynvml, pynvml.nvmlDeviceGetCudaComputeCapability, handle),
    )


def _ask(pynvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None: any question may be answered "not supported" on its own."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
