"""NVML without a Python package: the driver's own library, as far as the kit asks it.

A process cannot see its own share of a GPU's memory reliably (in a container, NVML knows other process numbers),
so the kit reads what all take together and subtracts what that was before.
"""

import ctypes
import threading
from types import TracebackType

from offload.errors import DeviceUnavailableError

_PERIOD_S = 0.005
_TEXT_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """One GPU, named by its PCI bus id. Raises DeviceUnavailableError where there is no NVML."""

    def __init__(self, pci_bus_id: str, library: str = "libnvidia-ml.so.1") -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise DeviceUnavailableError(f"NVML cannot be loaded: {error}") from None
        self._call("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByPciBusId_v2", pci_bus_id.encode(), ctypes.byref(self._handle))

    def used_bytes(self) -> int:
        """Memory that is in use, by all processes together."""
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._handle, ctypes.byref(memory))
        return int(memory.used)

    def driver(self) -> str:
        """The driver's version."""
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(_TEXT_BYTES))
        return text.value.decode()

    def pcie(self) -> dict[str, int]:
        """The link's generation and lanes: now, which is less when the GPU is idle, and at most."""
        return {
            "generation_now": self._number("nvmlDeviceGetCurrPcieLinkGeneration"),
            "lanes_now": self._number("nvmlDeviceGetCurrPcieLinkWidth"),
            "generation": self._number("nvmlDeviceGetMaxPcieLinkGeneration"),
            "lanes": self._number("nvmlDeviceGetMaxPcieLinkWidth"),
        }

    def _number(self, function: str) -> int:
        value = ctypes.c_uint()
        self._call(function, self._handle, ctypes.byref(value))
        return value.value

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise DeviceUnavailableError(f"NVML: {function} answers with status {status}")


class PeakMemory:
    """Watches what a GPU's memory rises by while a `with` lasts, from a thread."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._before_bytes = nvml.used_bytes()
        self.peak_bytes = 0
        self.samples = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_PERIOD_S):
            self.peak_bytes = max(self.peak_bytes, self._nvml.used_bytes() - self._before_bytes)
            self.samples += 1
