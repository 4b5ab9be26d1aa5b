"""Measure a device: copies, launches, its memory and its multiplications. On a simulated device, what it models.

Everything is queued as steps queue it: x is fp32 where the device takes that, and what is done to it is in the times.
Rates are slopes, the time of a large piece of work less that of one half as large, so that what a piece costs
whatever its size is not in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from offload.calibrate.host import Multiplier
from offload.devices.base import Device, DeviceArray
from offload.machine.profile import GpuRates
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import Layout, WeightFormat

_SMALL_BYTES = 4096  # a copy whose bytes cost nothing beside the copy itself
_MANY = 64  # small operations in a row, so that waiting for the last one counts little
_GEMM_ROWS = 1024
_FLOATS = (WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32)  # the first that there is stands for others


@dataclass(frozen=True)
class DeviceEffort:
    """The effort of measuring: how large the pieces are, and how often they are measured.

    The fastest GPUs read 5 TB/s and have more than 100 multiprocessors. A piece must take them a hundred microseconds
    and more, since a host's clock and queue are some out; and half a GEMM must keep all multiprocessors busy, or the
    whole one takes as long.
    """

    copy_bytes: int = 64 << 20
    weight_bytes: int = 2 << 30
    gemm_features: int = 8192
    rounds: int = 7


MODELLED = DeviceEffort(copy_bytes=1 << 20, weight_bytes=8 << 20, gemm_features=1024, rounds=1)


class DeviceMeter:
    """Measures one device, with memory of its own until it is closed. Raises OutOfDeviceMemoryError."""

    def __init__(self, device: Device, effort: DeviceEffort | None = None) -> None:
        """Without `effort`, as much as a device takes to be measured well; nothing is gained by more."""
        self._device = device
        self._effort = effort or (MODELLED if device.simulated else DeviceEffort())
        self._format = next(f for f in _FLOATS if _has(device, f))
        weight_bytes = min(self._effort.weight_bytes, device.memory().free_bytes // 4)
        features = self._effort.gemm_features
        gemm_bytes = 2 * features * features * max(f.itemsize_bytes for f in _FLOATS if _has(device, f))
        self._block = device.allocate(max(weight_bytes, gemm_bytes, 2 * self._effort.copy_bytes))
        x_and_y_bytes = 4 * _GEMM_ROWS * (features + 2 * features)
        self._columns = weight_bytes // (features * self._format.itemsize_bytes) // 2 * 2  # for one row of x
        scratch = max(
            self._scratch_bytes(1, features, self._columns, self._format),
            *(self._scratch_bytes(_GEMM_ROWS, features, 2 * features, f) for f in _FLOATS if _has(device, f)),
        )
        self._results = device.allocate(x_and_y_bytes + scratch)
        self._scratch = DeviceArray(self._results, x_and_y_bytes, (1, scratch), WeightFormat.INT8)
        self._pinned = device.allocate_pinned(self._effort.copy_bytes)
        self._pinned[:] = 0
        self._back = device.allocate_pinned(self._effort.copy_bytes)  # what is on its way in must not be written
        self._stream = device.stream("calibration")
        self._stream.copy_to_device(self._bytes(self._pinned.nbytes), self._pinned)
        self._stream.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._stream.synchronize()
        self._device.free(self._block)
        self._device.free(self._results)

    def rates(self, pageable_bytes_per_s: float) -> GpuRates:
        """Measure what the device profile wants to know.

        `pageable_bytes_per_s` stands for what a simulated device does not model: copies from memory that is not pinned.
        """
        device, fixed = self._device, self._device.fixed_bytes
        launch_s = self._each(lambda: self._multiply(1, 64, 64))
        bus, back = self.copy_rate(self._to_device), self.copy_rate(self._to_host)
        if not device.simulated:
            pageable_bytes_per_s = self._pageable_rate()
        return GpuRates(
            name=device.name,
            vram_bytes=device.memory().total_bytes,
            vram_bytes_per_s=self.vram_rate(),
            flops_per_s=self.flops_rates(),
            bus_bytes_per_s=bus,
            bus_back_bytes_per_s=back,
            pageable_bytes_per_s=pageable_bytes_per_s,
            copy_s=max(0.0, self._each(lambda: self._to_device(_SMALL_BYTES)) - _SMALL_BYTES / bus),
            round_trip_s=max(0.0, self.round_trip_time() - launch_s),
            launch_s=launch_s,
            context_bytes=fixed.get("context", 0),
            workspace_bytes=fixed.get("workspace", 0),
        )

    def copy_rate(self, copy: Callable[[int], None]) -> float:
        """Bytes a second of a copy of the whole pinned block."""
        return self._slope(copy, self._effort.copy_bytes)

    def vram_rate(self) -> float:
        """Bytes a second of a multiplication with one row: it reads its weight once."""
        features = self._effort.gemm_features
        per_column = features * self._format.itemsize_bytes + 4  # the weight's column and the result
        seconds = self._slope_s(lambda n: self._multiply(1, features, n), self._columns)
        return self._columns // 2 * per_column / seconds

    def flops_rates(self) -> dict[str, float]:
        """Operations a second of a multiplication with many rows, by the format of the weight.

        A format that the device refuses has the rate of another, which nothing asks for.
        """
        features = self._effort.gemm_features
        rates = {}
        for weight_format in _FLOATS:
            measured = weight_format if _has(self._device, weight_format) else self._format

            def multiply(columns: int, measured: WeightFormat = measured) -> None:
                self._multiply(_GEMM_ROWS, features, columns, measured)

            rates[str(weight_format)] = 2 * _GEMM_ROWS * features * features / self._slope_s(multiply, 2 * features)
        return rates

    def round_trip_time(self) -> float:
        """Seconds from queuing activations of a token, which are multiplied with next to nothing, to having results."""
        x_and_y = DeviceArray(self._results, 0, (1, 2 * _SMALL_BYTES // 4), WeightFormat.FP32)

        def there_and_back() -> None:
            self._stream.fetch(x_and_y, self._pinned[: x_and_y.nbytes])
            self._multiply(1, 64, 64)
            self._stream.copy_to_host(self._back[: x_and_y.nbytes], x_and_y)

        return median(self._elapsed_s(there_and_back) for _ in range(self._effort.rounds * 8))

    def ram_share_beside_bus(self, multiplier: Multiplier) -> float:
        """Measure the share left of the rate at which the host reads RAM while the bus copies out of it, 1 for all.

        A simulated device leaves the host alone.
        """
        if self._device.simulated:
            return 1.0
        shares = []
        for _ in range(self._effort.rounds):
            alone_s = _seconds(lambda: multiplier.multiply(1))
            # Several times as many copies as the multiply takes, so that it never runs without one.
            copy_s = self._elapsed_s(lambda: self._to_device(self._effort.copy_bytes))
            for _ in range(int(3 * alone_s / copy_s) + 2):
                self._to_device(self._effort.copy_bytes)
            shares.append(alone_s / _seconds(lambda: multiplier.multiply(1)))
            self._stream.synchronize()
        return min(1.0, median(shares))

    def _pageable_rate(self) -> float:
        # Not zeros: pages that nobody has written to are one page, which is read from a cache.
        source: HostArray = np.ones(self._effort.copy_bytes, np.uint8)
        return self._slope(lambda n: self._stream.copy_to_device(self._bytes(n), source[:n]), source.nbytes)

    def _slope(self, work: Callable[[int], None], nbytes: int) -> float:
        return nbytes // 2 / self._slope_s(work, nbytes)

    def _slope_s(self, work: Callable[[int], None], size: int) -> float:
        """Seconds that the second half of `size` takes."""
        halves, wholes = [], []
        for number in range(self._effort.rounds + 1):
            half_s = self._elapsed_s(lambda: work(size // 2))
            whole_s = self._elapsed_s(lambda: work(size))
            if number or self._effort.rounds == 1:  # the first round warms up
                halves.append(half_s)
                wholes.append(whole_s)
        whole_s, half_s = median(wholes), median(halves)
        return whole_s - half_s if whole_s > half_s else whole_s / 2

    def _each(self, work: Callable[[], None]) -> float:
        """Seconds of one of many equal small operations in a row."""

        def many() -> None:
            for _ in range(_MANY):
                work()

        return median(self._elapsed_s(many) for _ in range(self._effort.rounds)) / _MANY

    def _elapsed_s(self, queue: Callable[[], None]) -> float:
        """Seconds until what `queue` queues is done; virtual ones where the device's time is."""
        if not self._device.simulated:

            def run() -> None:
                queue()
                self._stream.synchronize()

            return _seconds(run)
        self._device.start_trace()
        queue()
        self._stream.synchronize()
        elapsed_s = self._device.trace_clock_s()
        self._device.take_trace()
        return elapsed_s

    def _to_device(self, nbytes: int) -> None:
        self._stream.copy_to_device(self._bytes(nbytes), self._pinned[:nbytes])

    def _to_host(self, nbytes: int) -> None:
        self._stream.copy_to_host(self._back[:nbytes], self._bytes(nbytes))

    def _multiply(self, rows: int, inner: int, columns: int, weight_format: WeightFormat | None = None) -> None:
        weight_format = weight_format or self._format
        x = DeviceArray(self._results, 0, (rows, inner), self._device.input_format(weight_format))
        w = DeviceArray(self._block, 0, (columns, inner), weight_format)
        y = DeviceArray(self._results, aligned(x.nbytes), (rows, columns), WeightFormat.FP32)
        self._stream.multiply(x, w, y, Layout.NK, self._scratch)

    def _scratch_bytes(self, rows: int, inner: int, columns: int, weight_format: WeightFormat) -> int:
        return aligned(scratch_bytes(rows, columns, inner, weight_format, None))

    def _bytes(self, nbytes: int) -> DeviceArray:
        return DeviceArray(self._block, 0, (1, nbytes // 4), WeightFormat.FP32)


def _has(device: Device, weight_format: WeightFormat) -> bool:
    return not device.supports(weight_format)


def _seconds(work: Callable[[], Any]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
