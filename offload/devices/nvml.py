"""What the driver's management library says about a GPU; the only importer of pynvml."""

from dataclasses import dataclass

from offload.errors import DeviceUnavailableError


@dataclass(frozen=True)
class GpuMemory:
    """A GPU as the driver sees it; memory in bytes, all processes together."""

    name: str
    free_bytes: int
    total_bytes: int


def gpu(ordinal: int) -> GpuMemory:
    """The GPU with this number, in the driver's order. Raises DeviceUnavailableError with the reason."""
    try:
        import pynvml
    except ImportError:
        raise DeviceUnavailableError("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceUnavailableError(f"no NVIDIA driver found ({error})") from None
    try:
        count = pynvml.nvmlDeviceGetCount()
        if ordinal >= count:
            raise DeviceUnavailableError(f"there is no GPU {ordinal}; the driver sees {count}")
        handle = pynvml.nvmlDeviceGetHandleByIndex(ordinal)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuMemory(str(pynvml.nvmlDeviceGetName(handle)), int(memory.free), int(memory.total))
    except pynvml.NVMLError as error:
        raise DeviceUnavailableError(
            f"the NVIDIA driver does not tell about GPU {ordinal} ({error})"
        ) from None
    finally:
        pynvml.nvmlShutdown()


def used_bytes(pci_bus_id: str) -> int | None:
    """Memory in use on a GPU by every process together; None where NVML cannot tell."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
