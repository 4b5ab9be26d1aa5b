"""Measure the CPU side of a machine: how fast weights of every format are multiplied, and what a launch costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from statistics import median, quantiles
from time import perf_counter
from typing import Protocol

import numpy as np

from offload.calibrate.rounds import rounds_within
from offload.host.base import HostBackend, HostColumns
from offload.spec.arrays import FloatArray, HostArray
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight

ROWS = (1, 8, 32, 128)  # of x: decode, and prefills of several lengths
_LAUNCHES = 200
_ONE = 0x3C00  # fp16's 1.0; as a half of fp32 and as bf16 it is a small number that is not denormal


class Multiplier(Protocol):
    """A weight that is ready to be multiplied."""

    @property
    def nbytes(self) -> int:
        """Count the bytes that a multiply has to read: the stored weight, and its scales where it has any."""

    def multiply(self, rows: int) -> None:
        """Multiply `rows` rows of x, one of `ROWS`, with the whole weight."""


class KernelMultiplier:
    """A weight [N, K] for a host backend."""

    def __init__(self, backend: HostBackend, columns: HostColumns) -> None:
        self.nbytes = columns.weight.nbytes
        self._group = backend.group([columns])
        self._arrays = dict(_arrays(columns))

    def multiply(self, rows: int) -> None:
        """See `Multiplier`."""
        self._group.multiply(*self._arrays[rows])


def multipliers(backend: HostBackend, nbytes: int, in_features: int) -> dict[WeightFormat, Multiplier]:
    """A weight of every format: views of one block of `nbytes` bytes, in huge pages where there are any."""
    block = np.full(nbytes // 2, _ONE, np.uint16)
    return {
        weight_format: KernelMultiplier(
            backend,
            _float_columns(block, weight_format, in_features)
            if weight_format.is_float
            else _block_columns(block, weight_format, in_features),
        )
        for weight_format in WeightFormat
    }


def _float_columns(block: HostArray, weight_format: WeightFormat, in_features: int) -> HostColumns:
    weight = block.view(weight_format.storage_dtype)
    columns = weight.size // in_features
    matrix = weight[: columns * in_features].reshape(columns, in_features)
    return HostColumns(StoredWeight.dense(matrix, weight_format, Layout.NK), 0, columns)


def _block_columns(block: HostArray, weight_format: WeightFormat, in_features: int) -> HostColumns:
    """A weight as `--host-dtype` makes it, which meets activations that are rounded to int8."""
    blocks = BlockFormat.made_on_load(weight_format)
    columns = block.nbytes // blocks.code_bytes(in_features)
    codes, scales = blocks.arrays(in_features, columns)
    codes_here = StoredArray.at(block.view(np.uint8)[: prod(codes.shape)], codes.dtype, codes.shape)
    scales_here = StoredArray.of(np.full(scales.shape, 0.01, scales.dtype))
    weight = StoredWeight(blocks, in_features, (codes_here, scales_here))
    return HostColumns(weight, 0, columns, Activations.INT8)


def multiply_rates(
    weights: Mapping[WeightFormat, Multiplier], rounds: int, longest_s: float
) -> dict[str, dict[int, float]]:
    """The rates of `CpuRates.multiply_bytes_per_s`: medians over rounds that take every weight and number of rows.

    By turns, so that a machine that slows down for a while slows all of them alike.
    """
    cells = [(weight_format, rows) for rows in ROWS for weight_format in weights]
    times: dict[tuple[WeightFormat, int], list[float]] = {cell: [] for cell in cells}
    for counts in rounds_within(rounds, longest_s):  # the first compiles and touches
        for weight_format, rows in cells:
            started = perf_counter()
            weights[weight_format].multiply(rows)
            if counts:
                times[weight_format, rows].append(perf_counter() - started)
    return {
        str(weight_format): {rows: multiplier.nbytes / median(times[weight_format, rows]) for rows in ROWS}
        for weight_format, multiplier in weights.items()
    }


def launch_time(backend: HostBackend) -> float:
    """Seconds of a kernel that has next to nothing to multiply: the fastest twentieth of many launches.

    One that other programs get in the way of takes milliseconds instead of microseconds, and that may be most of them.
    """
    weight = StoredWeight.dense(np.ones((64, 64), np.float32), WeightFormat.FP32, Layout.NK)
    multiplier = KernelMultiplier(backend, HostColumns(weight, 0, 64))
    times = []
    for _ in range(_LAUNCHES):
        started = perf_counter()
        multiplier.multiply(1)
        times.append(perf_counter() - started)
    return quantiles(times, n=20)[0]


def _arrays(columns: HostColumns) -> Iterator[tuple[int, tuple[FloatArray, list[FloatArray]]]]:
    for rows in ROWS:
        x = np.ones((rows, columns.in_features), np.float32)
        yield rows, (x, [np.zeros((rows, columns.out_features), np.float32)])


@dataclass(frozen=True)
class HostRates:
    """The measured rates of the CPU."""

    multiply_bytes_per_s: Mapping[str, Mapping[int, float]]
    launch_s: float

    @property
    def ram_bytes_per_s(self) -> float:
        """The rate of reading RAM: that of the kernel which is the fastest at one row, where reading is all."""
        return max(points[1] for points in self.multiply_bytes_per_s.values())
