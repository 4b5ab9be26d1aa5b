"""Measures this process's share of one GPU's memory, and guards the budget that it must not exceed."""

import threading
from collections.abc import Callable
from enum import StrEnum

from offload.devices.cuda.nvml import NvmlGpu
from offload.errors import DEVICE_MEMORY, DeviceUnavailableError, OverBudgetError
from offload.spec.units import MIB

GRANULE_BYTES = 2 * MIB  # the driver rounds what is asked for up to so much

_before_bytes: dict[str, int | None] = {}  # by PCI bus id: in use by all before this process had a context there


class VramSource(StrEnum):
    """Who says what is in use, the most certain one first."""

    PROCESS = "process"  # NVML, of this process alone
    DEVICE = "device"  # NVML, of the whole GPU, less what was in use before: others may come and go
    CUDA = "cuda"  # CUDA, of the whole GPU, others included


class VramMeter:
    """Measures by the best source there is, which is found at the first reading, and keeps the peak.

    `limit_bytes`, once it is set, is the budget that `check` holds. `gpu` is None where NVML does not answer, for the
    reason `why_no_nvml`.
    """

    def __init__(self, pci_bus_id: str, cuda_used_bytes: Callable[[], int]) -> None:
        """Must be made before this process has a context on the GPU.

        `cuda_used_bytes` says what CUDA has in use, everyone's; it is only called in the thread that reads.
        """
        self.gpu: NvmlGpu | None = None
        self.why_no_nvml = ""
        self.limit_bytes: int | None = None
        self.peak_bytes = self.last_bytes = 0
        self._cuda_used_bytes = cuda_used_bytes
        self._source: VramSource | None = None
        self._lock = threading.Lock()
        try:
            self.gpu = NvmlGpu(pci_bus_id)
        except DeviceUnavailableError as error:
            self.why_no_nvml = str(error)
        self._before_bytes = _before_bytes.setdefault(pci_bus_id, self.gpu.used_bytes() if self.gpu else None)

    @property
    def source(self) -> VramSource:
        """Who is asked. The first reading must be made when there is a context."""
        if self._source is None:
            self._source = self._best_source()
        return self._source

    def used_bytes(self) -> int:
        """Measure what this process takes now; as at the last reading where the source stops to tell.

        With the source CUDA it can only be asked in the thread of the device, and may raise DeviceLostError.
        """
        source = self.source
        if self.gpu is None or source is VramSource.CUDA:
            used_bytes: int | None = self._cuda_used_bytes()
        elif source is VramSource.PROCESS:
            used_bytes = self.gpu.process_bytes()
        else:
            used_bytes = self.gpu.used_bytes()
            if used_bytes is not None:
                used_bytes = max(0, used_bytes - (self._before_bytes or 0))
        with self._lock:
            if used_bytes is not None:
                self.last_bytes = used_bytes
                self.peak_bytes = max(self.peak_bytes, used_bytes)
            return self.last_bytes

    def check(self, more_bytes: int = 0) -> None:
        """Raise OverBudgetError where `more_bytes`, in whole granules, do not fit the budget beside what is in use."""
        if self.limit_bytes is None:
            return
        used_bytes = self.used_bytes()
        more_bytes = -(-more_bytes // GRANULE_BYTES) * GRANULE_BYTES
        if used_bytes + more_bytes > self.limit_bytes:
            raise OverBudgetError(more_bytes, used_bytes, self.limit_bytes, DEVICE_MEMORY)

    def close(self) -> None:
        """Ask no more; the last reading stays."""
        gpu, self.gpu = self.gpu, None
        self._cuda_used_bytes = lambda: self.last_bytes
        if gpu is not None:
            gpu.close()

    def _best_source(self) -> VramSource:
        if self.gpu is not None and self.gpu.process_bytes() is not None:
            return VramSource.PROCESS
        if self.gpu is not None and self._before_bytes is not None and self.gpu.used_bytes() is not None:
            return VramSource.DEVICE
        return VramSource.CUDA
