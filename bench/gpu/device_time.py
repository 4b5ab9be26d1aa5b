"""Times a device's work that was queued beforehand, without the time that queueing takes."""

from collections.abc import Callable, Sequence
from statistics import median

from offload.devices.base import Device, DeviceAllocation, DeviceArray, DeviceStream, Span
from offload.spec.arrays import HostArray
from offload.spec.linear import WeightFormat


class Bench:
    """A stream of a device with a block of `weight_bytes`, that holds `block` over and over, and one to write to.

    The block is long, so that walking through it reads memory rather than caches.
    """

    def __init__(self, device: Device, weight_bytes: int, result_bytes: int) -> None:
        self.device = device
        self.stream: DeviceStream = device.stream("kit")
        self.weights: DeviceAllocation = device.allocate(weight_bytes)
        self.results: DeviceAllocation = device.allocate(result_bytes)

    def close(self) -> None:
        """Give the memory back."""
        self.stream.synchronize()
        self.device.free(self.weights)
        self.device.free(self.results)

    def fill(self, block: HostArray) -> None:
        """Write `block`, pinned bytes, over and over into the weights."""
        for offset in range(0, self.weights.nbytes, block.nbytes):
            part = block[: min(block.nbytes, self.weights.nbytes - offset)]
            self.stream.copy_to_device(as_bytes(self.weights, offset, part.nbytes), part)
        self.stream.synchronize()

    def times_s(self, blocker: HostArray, queue: Callable[[], None]) -> list[float]:
        """Seconds of each operation that `queue` queues.

        A long copy of `blocker`, pinned bytes, goes first: while it runs, all is queued, so that the device never waits
        for the host.
        """
        self.device.start_trace()
        self.stream.copy_to_device(as_bytes(self.weights, 0, blocker.nbytes), blocker)
        queue()
        spans: Sequence[Span] = self.device.take_trace()
        return [span.duration_s for span in spans[1:]]

    def typical_s(self, blocker: HostArray, queue: Callable[[], None]) -> float:
        """The median of `times_s`."""
        return median(self.times_s(blocker, queue))


def as_bytes(allocation: DeviceAllocation, offset: int, nbytes: int) -> DeviceArray:
    """A part of an allocation, for copies; `nbytes` is a multiple of 4."""
    return DeviceArray(allocation, offset, (1, nbytes // 4), WeightFormat.FP32)
