"""Devices of which calls of one's choice fail: the simulated one, and CUDA by CuPy's error numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from offload.devices.base import Device
from offload.devices.cuda.device import CudaDevice
from offload.devices.simulated.device import SimulatedDevice
from offload.errors import DEVICE_MEMORY, PINNED_RAM
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.failing_device import NEVER, FailingDevice

BUDGET_BYTES = 2 << 20  # resident, streamed and host columns of the 1.7 MiB of two layers and a head

_ALLOCATIONS = {"malloc": DEVICE_MEMORY, "hostAlloc": PINNED_RAM}
_OPERATIONS = ("memcpyAsync", "gemm", "eventRecord", "streamWaitEvent", "synchronize")
_STICKY = (700, 719, 214)  # after which CUDA answers everything so


@dataclass
class FailingCuda:
    """What FailingDevice does, by the numbers that CuPy's errors have."""

    emulated: EmulatedCupy
    refused: tuple[int, ...] = ()
    lost_at: int = NEVER
    short_at: int = NEVER
    allocations: int = 0
    operations: int = 0
    refusals: list[tuple[int, str]] = field(default_factory=list)

    def __call__(self, name: str) -> int:
        """Give the status of a call."""
        if name in _ALLOCATIONS:
            self.allocations += 1
            if self.allocations not in self.refused:
                return 0
            self.refusals.append((0, _ALLOCATIONS[name]))
            return 2
        self.operations += name in _OPERATIONS
        if self.operations >= self.lost_at:
            self.emulated.broken = _STICKY[self.lost_at % len(_STICKY)]
            return 14 if name == "gemm" else self.emulated.broken  # cuBLAS does not say what is wrong with CUDA
        if self.operations >= self.short_at and name == "gemm":
            self.short_at = NEVER
            return 3
        return 0

    @property
    def why_lost(self) -> str:
        return f"cudaError {self.emulated.broken}"

    @property
    def asked_when_lost(self) -> int:
        return self.emulated.entered if self.emulated.broken else 0


@dataclass(frozen=True)
class Faulty:
    """A device, the counts of its calls, and what of its memory is taken."""

    device: Device
    calls: Any  # FailingDevice or FailingCuda
    used_bytes: Callable[[], int]
    pinned_bytes: Callable[[], int]


def simulated(monkeypatch: pytest.MonkeyPatch, **failing: Any) -> Faulty:
    """The budget is all the memory there is, so no plan may take more."""
    device = FailingDevice(SimulatedDevice(BUDGET_BYTES), **failing)
    return Faulty(device, device, lambda: BUDGET_BYTES - device.inner.memory().free_bytes, lambda: device.pinned_bytes)


def cuda(monkeypatch: pytest.MonkeyPatch, **failing: Any) -> Faulty:
    emulated = EmulatedCupy()
    emulated.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    device = CudaDevice()
    emulated.fault = calls = FailingCuda(emulated, **failing)
    return Faulty(device, calls, lambda: sum(map(len, emulated.blocks.values())), lambda: len(emulated.pinned))
