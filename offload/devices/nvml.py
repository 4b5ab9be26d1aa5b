"""What the driver's management library says about a GPU; the only importer of pynvml."""

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


def used_bytes(pci_bus_id: str) -> int | None:
    """Memory in use on a GPU by every process together; None where NVML cannot tell."""
    try:
        pynvml = _start()
    except DeviceUnavailableError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


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
