"""Columns that go to a device, out of whole weights of the host: as they are stored, or quantised on the way."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from offload.plan.packing import ColumnMatrix
from offload.spec.arrays import HostArray
from offload.spec.linear import ColumnRange, Dense, Layout, LinearSpec
from offload.storage.stored_weight import StoredWeight
from offload.weights.requantise import requantise


def read_rows(matrix: ColumnMatrix, weights: Mapping[str, StoredWeight], start: int, out: HostArray) -> None:
    """Write the stored rows of a matrix of floats from `start` on into `out`, as many as it has."""
    stop = start + len(out)
    for (linear, columns), position in zip(matrix.segments, matrix.positions(), strict=True):
        (weight,) = weights[linear.name].arrays
        if matrix.layout is Layout.KN:
            part = weight.rows(start, stop).columns(columns.start, columns.stop)
            part.read_into(out[:, position : position + len(columns)])
            continue
        first, last = max(start, position), min(stop, position + len(columns))
        if first < last:
            shift = columns.start - position
            weight.rows(first + shift, last + shift).read_into(out[first - start : last - start])


def read_blocks(matrix: ColumnMatrix, weights: Mapping[str, StoredWeight], out: npt.NDArray[np.uint8]) -> None:
    """Write a block-quantised matrix into `out`, its bytes as DeviceBlocks has them; float weights are quantised."""
    for linear, columns, target in _targets(matrix, out):
        weight = weights[linear.name].columns(columns.start, columns.stop)
        if isinstance(weight.storage, Dense):
            requantise(weight, target)
            continue
        for source, part in zip(weight.arrays, target.arrays, strict=True):
            source.read_into(part.array())


def _targets(
    matrix: ColumnMatrix, memory: npt.NDArray[np.uint8]
) -> Iterator[tuple[LinearSpec, ColumnRange, StoredWeight]]:
    """Yield each Linear, its columns and their place in `memory`."""
    assert matrix.blocks is not None
    whole = StoredWeight.over(memory, matrix.blocks, matrix.in_features, matrix.columns)
    for (linear, columns), position in zip(matrix.segments, matrix.positions(), strict=True):
        yield linear, columns, whole.columns(position, position + len(columns))
