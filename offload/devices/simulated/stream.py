"""The streams and events of the simulated device: what they queue, and the checks of its order."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceArray, DeviceEvent, DeviceWeight
from offload.devices.simulated.clock import Operation
from offload.devices.simulated.happens_before import Access, Clock, StreamOrderError, learn
from offload.devices.simulated.memory import POISON, DeviceMisuseError, Place, device_bytes, device_place
from offload.devices.simulated.multiply import Operands
from offload.spec.arrays import HostArray
from offload.spec.linear import Activations, Layout

if TYPE_CHECKING:
    from offload.devices.simulated.device import SimulatedDevice

_COPY_IN, _COPY_OUT, _COMPUTE = "copy-in", "copy-out", "compute"  # the engines


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
        source, place = self._device.pinned.find(src, rows_apart=True)
        self._bring_in(dst, source, place, _COPY_IN, "copy-in")

    def fetch(self, dst: DeviceArray, src: HostArray) -> None:
        """See DeviceStream. A kernel takes as long as a copy would, and none can run beside it."""
        source, place = self._device.pinned.find(src)
        self._bring_in(dst, source, place, _COMPUTE if self._device.own_kernels else _COPY_IN, "fetch")

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        """See DeviceStream."""
        target, target_place = self._device.pinned.find(dst)
        source = device_bytes(src)
        _same_size(src.nbytes, target)
        what = f"the copy-out of {src.nbytes} bytes on stream {self._name!r}"
        self._touch([device_place(src)], [target_place], what)
        duration_s, name = self._device.rates.copy_back_s(src.nbytes), f"copy-out {src.nbytes} B"
        if self._device.hollow:
            return self._queue(_COPY_OUT, duration_s, _nothing, name)
        target[:] = POISON
        sent = np.empty_like(target)

        def leave() -> None:
            sent[:] = source

        def deliver() -> None:
            target[:] = sent

        self._queue(_COPY_OUT, duration_s, leave, name)
        self._device.when_known(self._actor, self._clock[self._actor], deliver)

    def multiply(
        self,
        x: DeviceArray,
        w: DeviceWeight,
        y: DeviceArray,
        layout: Layout,
        scratch: DeviceArray,
        activations: Activations = Activations.FLOAT,
    ) -> None:
        """See DeviceStream. Nothing is in the scratch memory afterwards."""
        operands = Operands(x, w, y, layout, scratch, activations)
        operands.check(self._device.input_format(operands.weight_format))
        name = f"gemm {operands.name}"
        reads, writes = [device_place(x), device_place(w)], [device_place(y)]
        if operands.scratch_used.nbytes:
            writes.append(device_place(operands.scratch_used))
        self._touch(reads, writes, f"{name} on stream {self._name!r}")
        stored = operands.blocks or operands.weight_format
        duration_s = self._device.rates.multiply_s(stored, y.shape[1], x.shape[1], x.shape[0])
        self._queue(_COMPUTE, duration_s, _nothing if self._device.hollow else operands.multiply, name)

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

    def _bring_in(self, dst: DeviceArray, source: npt.NDArray[np.uint8], place: Place, engine: str, word: str) -> None:
        """Queue `source`, which lies at `place`, into `dst`."""
        target = device_bytes(dst)
        _same_size(dst.nbytes, source)
        what = f"the {word} of {dst.nbytes} bytes on stream {self._name!r}"
        self._touch([place], [device_place(dst)], what)
        duration_s, name = self._device.rates.copy_s(dst.nbytes), f"copy-in {dst.nbytes} B"
        if self._device.hollow:
            return self._queue(engine, duration_s, _nothing, name)
        sent = source.copy()

        def arrive() -> None:
            target[:] = sent.reshape(-1)

        def check_source() -> None:
            if not np.array_equal(source, sent):
                raise StreamOrderError(f"the host wrote to the source of {what} without waiting for it")

        self._queue(engine, duration_s, arrive, name)
        self._device.when_known(self._actor, self._clock[self._actor], check_source)

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


def _nothing() -> None:
    """The effect of an operation on a hollow device."""


def _same_size(nbytes: int, host: npt.NDArray[np.uint8]) -> None:
    if host.nbytes != nbytes:
        raise DeviceMisuseError(f"a copy between {nbytes} device bytes and {host.nbytes} host bytes")
