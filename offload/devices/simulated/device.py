"""A device made of NumPy arrays and a virtual clock, to test correctness and stream order without a GPU.

Its times are modelled, never measured. What it is strict about, whether or not the timing shows it:

- an operation that uses bytes without waiting for another that uses them is a StreamOrderError when queued;
- fresh, freed and not yet delivered memory reads as NaN in every float format. The bytes of a copy to the
  host arrive only once the host has synchronised with the copy;
- the host changing the source of a copy or fetch before it has synchronised with it is a StreamOrderError;
- a multiplication poisons as much of its scratch memory as any GPU may use;
- freed memory, bytes out of bounds, memory that is not pinned, too little scratch memory and shapes that do not fit
  are DeviceMisuseErrors.

A hollow device is strict about order, bounds and shapes too, but holds no bytes and moves none: it is for the times
of models that are too big to try.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceAllocation, DeviceMemory, Span
from offload.devices.simulated.clock import Operation, VirtualClock
from offload.devices.simulated.happens_before import Clock, learn
from offload.devices.simulated.memory import DeviceMisuseError, PinnedBlocks, SimulatedAllocation
from offload.devices.simulated.rates import SimulatedRates
from offload.devices.simulated.stream import SimulatedEvent, SimulatedStream
from offload.errors import DEVICE_MEMORY, OutOfDeviceMemoryError
from offload.spec.linear import LinearSpec, WeightFormat


class SimulatedDevice:
    """See Device. One copy engine each way and one compute engine, with a cap on memory.

    Without kernels of its own it is like a GPU whose kernels cannot be compiled: a library multiplies float weights,
    x is stored as they are, and a fetch is a copy.
    """

    simulated = True

    def __init__(
        self,
        memory_bytes: int,
        context_bytes: int = 0,
        workspace_bytes: int = 0,
        rates: SimulatedRates | None = None,
        hollow: bool = False,
        own_kernels: bool = True,
    ) -> None:
        self.name = "simulated device (modelled times)"
        self.fixed_bytes = {"context": context_bytes, "workspace": workspace_bytes}
        self.hollow = hollow
        self.own_kernels = own_kernels
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
        if weight_format.is_float or self.own_kernels:
            return ""
        return f"no kernel of this device multiplies {weight_format}"

    def input_format(self, weight_format: WeightFormat) -> WeightFormat:
        """See Device."""
        return WeightFormat.FP32 if self.own_kernels else weight_format

    def warm_up(self, linears: Sequence[LinearSpec], chunk_tokens: int) -> None:
        """See Device. There is nothing to compile, and `fixed_bytes` stay as they were given."""

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
        """List what the host spent time on and waited for since the trace began, in virtual time."""
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
