"""Any device, but an allocation of one's choice fails, or from some operation on, everything."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceAllocation, DeviceArray, DeviceEvent, DeviceMemory, DeviceWeight, Span
from offload.errors import DEVICE_MEMORY, PINNED_RAM, DeviceLostError, OutOfDeviceMemoryError
from offload.spec.arrays import HostArray
from offload.spec.linear import Activations, Layout, LinearSpec, WeightFormat

NEVER = 1 << 60


@dataclass
class FailingEvent:
    """See DeviceEvent."""

    device: "FailingDevice"
    inner: DeviceEvent

    def synchronize(self) -> None:
        self.device.operate()
        self.inner.synchronize()


@dataclass
class FailingStream:
    """See DeviceStream."""

    device: "FailingDevice"
    inner: Any

    def copy_to_device(self, dst: DeviceArray, src: HostArray) -> None:
        self.device.operate()
        self.inner.copy_to_device(dst, src)

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        self.device.operate()
        self.inner.copy_to_host(dst, src)

    def fetch(self, dst: DeviceArray, src: HostArray) -> None:
        self.device.operate()
        self.inner.fetch(dst, src)

    def multiply(
        self,
        x: DeviceArray,
        w: DeviceWeight,
        y: DeviceArray,
        layout: Layout,
        scratch: DeviceArray,
        activations: Activations = Activations.FLOAT,
    ) -> None:
        self.device.operate()
        self.inner.multiply(x, w, y, layout, scratch, activations)

    def record(self, event: DeviceEvent) -> None:
        assert isinstance(event, FailingEvent)
        self.device.operate()
        self.inner.record(event.inner)

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, FailingEvent)
        self.device.operate()
        self.inner.wait(event.inner)

    def synchronize(self) -> None:
        self.device.operate()
        self.inner.synchronize()


class FailingDevice:
    """See Device. Counts allocations, device and pinned ones together, and operations, both from 1.

    `refused` are the numbers of the allocations that fail; the operation `lost_at` and all calls after it raise
    DeviceLostError, which `asked_when_lost` counts. The operation `short_at` finds no memory, once.
    """

    def __init__(
        self, inner: Device, refused: tuple[int, ...] = (), lost_at: int = NEVER, short_at: int = NEVER
    ) -> None:
        self.inner = inner
        self.name, self.simulated, self.hollow = inner.name, inner.simulated, inner.hollow
        self.fixed_bytes = inner.fixed_bytes
        self.refused = refused
        self.lost_at = lost_at
        self.short_at = short_at
        self.allocations = 0
        self.operations = 0
        self.lost = False
        self.asked_when_lost = 0
        self.why_lost = f"{self.name} failed as it was told to"
        self.refusals: list[tuple[int, str]] = []  # bytes, and where
        self.peak_bytes = self._used_bytes()
        self.pinned_bytes = self.peak_pinned_bytes = 0

    def operate(self) -> None:
        """Before every operation."""
        self.operations += 1
        self.lost = self.lost or self.operations >= self.lost_at
        self._check()
        if self.operations == self.short_at:
            raise OutOfDeviceMemoryError(0, 0, 0, DEVICE_MEMORY)

    def supports(self, weight_format: WeightFormat) -> str:
        return self.inner.supports(weight_format)

    def input_format(self, weight_format: WeightFormat) -> WeightFormat:
        return self.inner.input_format(weight_format)

    def warm_up(self, linears: Sequence[LinearSpec], chunk_tokens: int) -> None:
        self.operate()
        self.inner.warm_up(linears, chunk_tokens)

    def memory(self) -> DeviceMemory:
        self._check()
        return self.inner.memory()

    def allocate(self, nbytes: int) -> DeviceAllocation:
        self._count_allocation(nbytes, DEVICE_MEMORY)
        allocation = self.inner.allocate(nbytes)
        self.peak_bytes = max(self.peak_bytes, self._used_bytes())
        return allocation

    def allocate_pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        self._count_allocation(nbytes, PINNED_RAM)
        array = self.inner.allocate_pinned(nbytes)
        self.pinned_bytes += nbytes
        self.peak_pinned_bytes = max(self.peak_pinned_bytes, self.pinned_bytes)
        weakref.finalize(array, self._unpinned, nbytes).atexit = False
        return array

    def pin(self, array: npt.NDArray[np.uint8]) -> None:
        self._check()
        self.inner.pin(array)

    def unpin(self, array: npt.NDArray[np.uint8]) -> None:
        if not self.lost:
            self.inner.unpin(array)

    def free(self, allocation: DeviceAllocation) -> None:
        if not self.lost:
            self.inner.free(allocation)

    def stream(self, name: str) -> FailingStream:
        self._check()
        return FailingStream(self, self.inner.stream(name))

    def event(self) -> FailingEvent:
        self._check()
        return FailingEvent(self, self.inner.event())

    def start_trace(self) -> None:
        self.inner.start_trace()

    def trace_clock_s(self) -> float:
        return self.inner.trace_clock_s()

    def take_trace(self) -> list[Span]:
        return [] if self.lost else self.inner.take_trace()

    def close(self) -> None:
        self.inner.close()

    def _check(self) -> None:
        if self.lost:
            self.asked_when_lost += 1
            raise DeviceLostError(self.why_lost)

    def _count_allocation(self, nbytes: int, where: str) -> None:
        self._check()
        self.allocations += 1
        if self.allocations in self.refused:
            memory = self.inner.memory()
            used_bytes = memory.total_bytes - memory.free_bytes
            self.refusals.append((nbytes, where))
            raise OutOfDeviceMemoryError(nbytes, used_bytes, memory.total_bytes, where)

    def _unpinned(self, nbytes: int) -> None:
        self.pinned_bytes -= nbytes

    def _used_bytes(self) -> int:
        memory = self.inner.memory()
        return memory.total_bytes - memory.free_bytes
