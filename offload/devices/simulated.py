"""A device made of NumPy arrays and a virtual clock, to test correctness and stream order without a GPU.

Its times are modelled, never measured. What it is strict about, whether or not the timing shows it:

- an operation that uses bytes without waiting for another that uses them is a StreamOrderError when queued;
- fresh, freed and not yet delivered memory reads as NaN in every float format. The bytes of a copy to the
  host arrive only once the host has synchronised with the copy;
- the host changing the source of a copy before it has synchronised with the copy is a StreamOrderError;
- freed memory, bytes out of bounds, memory that is not pinned and shapes that do not fit are
  DeviceMisuseErrors.

A hollow device is strict about order, bounds and shapes too, but holds no bytes and moves none: it is for the times
of models that are too big to try.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceAllocation, DeviceArray, DeviceEvent, DeviceMemory, HostArray, Span
from offload.devices.happens_before import Access, Clock, StreamOrderError, learn
from offload.devices.simulated_memory import (
    POISON,
    DeviceMisuseError,
    PinnedBlocks,
    Place,
    SimulatedAllocation,
    as_float32,
    device_bytes,
    device_place,
)
from offload.devices.simulated_rates import SimulatedRates
from offload.devices.virtual_clock import Operation, VirtualClock
from offload.errors import DEVICE_MEMORY, OutOfDeviceMemoryError
from offload.specs import Layout, WeightFormat


class SimulatedEvent:
    """A point in a stream: the operations before it, and what is known after it."""

    def __init__(self, device: "SimulatedDevice") -> None:
        self._device = device
        self.frontier: tuple[Operation, ...] = ()
        self.clock: Clock = {}

    def synchronize(self) -> None:
        """Let virtual time pass until the last record."""
        self._device.host_waits(self.frontier, self.clock)


class SimulatedStream:
    """A queue of operations; each waits for the one before it."""

    def __init__(self, device: "SimulatedDevice", name: str, actor: int) -> None:
        self._device = device
        self._name = name
        self._actor = actor
        self._clock: Clock = {}
        self._frontier: tuple[Operation, ...] = ()  # what the next operation comes after

    def copy_to_device(self, dst: DeviceArray, src: HostArray) -> None:
        """See DeviceStream."""
        source, source_place = self._device.pinned.find(src, rows_apart=True)
        target = device_bytes(dst)
        _same_size(dst.nbytes, source)
        what = f"the copy-in of {dst.nbytes} bytes on stream {self._name!r}"
        self._touch([source_place], [device_place(dst)], what)
        duration_s, name = self._device.rates.copy_s(dst.nbytes), f"copy-in {dst.nbytes} B"
        if self._device.hollow:
            return self._queue("copy-in", duration_s, _nothing, name)
        sent = source.copy()

        def arrive() -> None:
            target[:] = sent.reshape(-1)

        def check_source() -> None:
            if not np.array_equal(source, sent):
                raise StreamOrderError(f"the host wrote to the source of {what} without waiting for it")

        self._queue("copy-in", duration_s, arrive, name)
        self._device.when_known(self._actor, self._clock[self._actor], check_source)

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        """See DeviceStream."""
        target, target_place = self._device.pinned.find(dst)
        source = device_bytes(src)
        _same_size(src.nbytes, target)
        what = f"the copy-out of {src.nbytes} bytes on stream {self._name!r}"
        self._touch([device_place(src)], [target_place], what)
        duration_s, name = self._device.rates.copy_back_s(src.nbytes), f"copy-out {src.nbytes} B"
        if self._device.hollow:
            return self._queue("copy-out", duration_s, _nothing, name)
        target[:] = POISON
        sent = np.empty_like(target)

        def leave() -> None:
            sent[:] = source

        def deliver() -> None:
            target[:] = sent

        self._queue("copy-out", duration_s, leave, name)
        self._device.when_known(self._actor, self._clock[self._actor], deliver)

    def gemm(self, x: DeviceArray, w: DeviceArray, y: DeviceArray, layout: Layout) -> None:
        """See DeviceStream."""
        rows, inner = x.shape
        columns = y.shape[1]
        w_shape = (inner, columns) if layout is Layout.KN else (columns, inner)
        if w.shape != w_shape or y.shape != (rows, columns):
            raise DeviceMisuseError(f"gemm of x {x.shape}, w {w.shape} {layout} and y {y.shape}")
        if x.format is not w.format or y.format is not WeightFormat.FP32 or not w.format.is_float:
            raise DeviceMisuseError(f"gemm of x {x.format}, w {w.format} and y {y.format}")
        for array in (x, w, y):
            device_bytes(array)
        name = f"gemm {rows}x{inner}x{columns}"
        self._touch([device_place(x), device_place(w)], [device_place(y)], f"{name} on stream {self._name!r}")

        def multiply() -> None:
            right = as_float32(w) if layout is Layout.KN else as_float32(w).T
            with np.errstate(all="ignore"):  # poison and overflow are for the caller to find
                product = np.matmul(as_float32(x), right)
            device_bytes(y)[:] = product.reshape(-1).view(np.uint8)

        duration_s = self._device.rates.gemm_s(rows, inner, columns, x.nbytes + w.nbytes + y.nbytes)
        self._queue("compute", duration_s, _nothing if self._device.hollow else multiply, name)

    def record(self, event: DeviceEvent) -> None:
        """See DeviceStream."""
        assert isinstance(event, SimulatedEvent)
        # Copies, so that a later record leaves alone the waits that are bound to this one.
        event.frontier = self._frontier
        event.clock = dict(self._clock)

    def wait(self, event: DeviceEvent) -> None:
        """See DeviceStream."""
        assert isinstance(event, SimulatedEvent)
        self._frontier += event.frontier
        learn(self._clock, event.clock)

    def synchronize(self) -> None:
        """See DeviceStream."""
        self._device.host_waits(self._frontier, self._clock)

    def _touch(
        self,
        reads: list[Place],
        writes: list[Place],
        what: str,
    ) -> None:
        """Number the next operation and check that it is ordered after all that it has to be."""
        learn(self._clock, self._device.host_clock)  # what the host has waited for is done by now
        number = self._clock[self._actor] = self._clock.get(self._actor, 0) + 1
        for places, writing in ((reads, False), (writes, True)):
            for history, start, stop in places:
                history.add(Access(start, stop, self._actor, number, writing, what), self._clock)

    def _queue(self, engine: str, duration_s: float, effect: Callable[[], None], name: str) -> None:
        track = f"modelled {self._name}"
        self._frontier = (self._device.queue(track, name, engine, duration_s, effect, self._frontier),)


class SimulatedDevice:
    """See Device. One copy engine each way and one compute engine, with a cap on memory."""

    simulated = True

    def __init__(
        self,
        memory_bytes: int,
        context_bytes: int = 0,
        workspace_bytes: int = 0,
        rates: SimulatedRates | None = None,
        hollow: bool = False,
    ) -> None:
        self.name = "simulated device (modelled times)"
        self.fixed_bytes = {"context": context_bytes, "workspace": workspace_bytes}
        self.hollow = hollow
        self.host_clock: Clock = {}
        self.rates = rates or SimulatedRates()
        self._memory_bytes = memory_bytes
        self._clock = VirtualClock()
        self._streams = 0
        self._allocations: list[SimulatedAllocation] = []
        self.pinned = PinnedBlocks()
        self._on_known: list[tuple[int, int, Callable[[], None]]] = []  # actor, its operation, action
        self._trace: list[Operation] | None = None
        self._host_spans: list[Span] = []
        self._trace_start_s = 0.0

    def supports(self, weight_format: WeightFormat) -> str:
        """See Device."""
        return "" if weight_format.is_float else f"no device kernel multiplies {weight_format} yet"

    def memory(self) -> DeviceMemory:
        """See Device."""
        return DeviceMemory(self._memory_bytes - self._used_bytes, self._memory_bytes)

    def allocate(self, nbytes: int) -> SimulatedAllocation:
        """See Device."""
        if self._used_bytes + nbytes > self._memory_bytes:
            raise OutOfDeviceMemoryError(nbytes, self._used_bytes, self._memory_bytes, DEVICE_MEMORY)
        self._allocations.append(SimulatedAllocation(nbytes, self.hollow))
        return self._allocations[-1]

    def free(self, allocation: DeviceAllocation) -> None:
        """See Device."""
        assert isinstance(allocation, SimulatedAllocation)
        if allocation.freed:
            raise DeviceMisuseError("freed twice")
        allocation.history.require_known(self.host_clock, "free")
        allocation.free()
        self._allocations.remove(allocation)

    def allocate_pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See Device."""
        return self.pinned.allocate(nbytes, self.hollow)

    def pin(self, array: npt.NDArray[np.uint8]) -> None:
        """See Device. Raises DeviceMisuseError for bytes that are pinned already."""
        self.pinned.register(array)

    def unpin(self, array: npt.NDArray[np.uint8]) -> None:
        """See Device. Raises StreamOrderError when copies from it were not waited for."""
        self.pinned.unregister(array, self.host_clock)

    def stream(self, name: str) -> SimulatedStream:
        """See Device."""
        self._streams += 1
        return SimulatedStream(self, name, self._streams)

    def event(self) -> SimulatedEvent:
        """See Device."""
        return SimulatedEvent(self)

    def start_trace(self) -> None:
        """See Device."""
        self._trace, self._host_spans = [], []
        self._trace_start_s = self._clock.now_s

    def trace_clock_s(self) -> float:
        """See Device. Virtual time, which passes only while the host waits or spends it."""
        return self._clock.now_s - self._trace_start_s

    def take_trace(self) -> list[Span]:
        """See Device. Every track's name begins with "modelled"."""
        self._clock.finish()
        traced, self._trace = self._trace or [], None
        start_s = self._trace_start_s
        return [Span(done.track, done.name, done.start_s - start_s, done.duration_s) for done in traced]

    @property
    def host_spans(self) -> tuple[Span, ...]:
        """What the host has spent time on and waited for since the trace began, in virtual time."""
        return tuple(self._host_spans)

    def close(self) -> None:
        """See Device. Raises StreamOrderError when the host changed the source of a copy in flight."""
        self._clock.finish()
        actions, self._on_known = self._on_known, []
        for _, _, action in actions:
            action()
        for allocation in self._allocations:
            allocation.free()
        self._allocations.clear()

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self._clock.now_s

    def spend(self, seconds: float, name: str) -> None:
        """Let the host work for some virtual time, while streams go on with what has been queued."""
        self._note_host(name, seconds)
        self._clock.pass_time(seconds)

    # What streams and events ask of their device.

    def queue(
        self,
        track: str,
        name: str,
        engine: str,
        duration_s: float,
        effect: Callable[[], None],
        after: tuple[Operation, ...],
    ) -> Operation:
        """Queue an operation on the virtual clock."""
        operation = self._clock.queue(track, name, engine, duration_s, effect, after)
        if self._trace is not None:
            self._trace.append(operation)
        return operation

    def when_known(self, actor: int, number: int, action: Callable[[], None]) -> None:
        """Call `action` as soon as the host is ordered after an operation."""
        self._on_known.append((actor, number, action))

    def host_waits(self, frontier: tuple[Operation, ...], clock: Clock) -> None:
        """Let the host wait for `frontier`, and know what `clock` knows."""
        began_s = self._clock.now_s
        self._clock.wait_for(frontier)
        self._clock.pass_time(self.rates.wait_s)
        self._note_host("wait", self._clock.now_s - began_s, began_s)
        learn(self.host_clock, clock)
        waiting = []
        for actor, number, action in self._on_known:
            if self.host_clock.get(actor, 0) >= number:
                action()
            else:
                waiting.append((actor, number, action))
        self._on_known = waiting

    def _note_host(self, name: str, duration_s: float, start_s: float | None = None) -> None:
        if self._trace is not None:
            start_s = self._clock.now_s if start_s is None else start_s
            self._host_spans.append(Span("modelled host", name, start_s - self._trace_start_s, duration_s))

    @property
    def _used_bytes(self) -> int:
        return sum(self.fixed_bytes.values()) + sum(block.nbytes for block in self._allocations)


def _nothing() -> None:
    """The effect of an operation on a hollow device."""


def _same_size(nbytes: int, host: npt.NDArray[np.uint8]) -> None:
    if host.nbytes != nbytes:
        raise DeviceMisuseError(f"a copy between {nbytes} device bytes and {host.nbytes} host bytes")
