"""Have CUDA load everything that steps will need: kernels of our own and of cuBLAS."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offload.devices.base import DeviceAllocation, DeviceArray, DeviceBlocks, DeviceWeight
from offload.devices.cuda.stream import CudaStream
from offload.plan.scratch import MAX_ROWS, scratch_bytes
from offload.spec.linear import Activations, BlockFormat, Layout, LinearSpec, WeightFormat

if TYPE_CHECKING:
    from offload.devices.cuda.device import CudaDevice

# Matrices are cut to these sizes, so that a warm-up takes little memory; the rest of K keeps its alignment.
_MOST_COLUMNS, _MOST_FEATURES, _FEATURE_TILE = 1024, 4096, 256
_FEW_COLUMNS = 64  # as streamed pieces may have: few enough for the inner dimension to be split
_PREFILL_ROWS = (MAX_ROWS + 1, 16, 64)  # and a whole chunk: cuBLAS has other kernels for other numbers of rows


@dataclass(frozen=True)
class _Kind:
    """The properties that decide which kernels a weight takes."""

    format: WeightFormat
    blocks: BlockFormat | None
    layout: Layout
    activations: Activations
    in_features: int
    columns: int

    @staticmethod
    def of(linear: LinearSpec) -> "_Kind":
        features, columns = linear.in_features, linear.out_features
        if features > _MOST_FEATURES:
            features = _MOST_FEATURES + features % _FEATURE_TILE
        if columns > _MOST_COLUMNS:
            columns = _MOST_COLUMNS + (columns % 8 if linear.layout is Layout.KN else 0)
        activations = linear.activations if linear.blocks else Activations.FLOAT
        return _Kind(linear.format, linear.blocks, linear.layout, activations, features, columns)

    @property
    def weight_bytes(self) -> int:
        """Bytes of such a weight."""
        if self.blocks is not None:
            return self.columns * self.blocks.column_bytes(self.in_features)
        return self.columns * self.in_features * self.format.itemsize_bytes

    def weight_in(self, memory: DeviceAllocation) -> DeviceWeight:
        """Such a weight at the beginning of an allocation."""
        if self.blocks is not None:
            return DeviceBlocks(memory, 0, self.columns, self.in_features, self.blocks)
        kn = self.layout is Layout.KN
        shape = (self.in_features, self.columns) if kn else (self.columns, self.in_features)
        return DeviceArray(memory, 0, shape, self.format)


def run_once(device: "CudaDevice", linears: Iterable[LinearSpec], chunk_tokens: int) -> None:
    """Multiply weights like those of `linears` by as many rows as steps may have; what they hold does not matter.

    Raises OutOfDeviceMemoryError where there is no room for that.
    """
    rows = [*range(1, min(MAX_ROWS, chunk_tokens) + 1)]
    rows += sorted({count for count in (*_PREFILL_ROWS, chunk_tokens) if MAX_ROWS < count <= chunk_tokens})
    stream = device.stream("warm-up")
    for kind in dict.fromkeys(map(_Kind.of, linears)):
        for columns in {kind.columns, min(kind.columns, _FEW_COLUMNS)}:
            if not device.supports(kind.format):
                _multiply(device, stream, replace(kind, columns=columns), rows)


def _multiply(device: "CudaDevice", stream: CudaStream, kind: _Kind, rows: Sequence[int]) -> None:
    x_format, most = device.input_format(kind.format), rows[-1]
    scratch = scratch_bytes(most, kind.columns, kind.in_features, kind.format, kind.blocks)
    sizes = (most * kind.in_features * 4, kind.weight_bytes, most * kind.columns * 4, scratch)
    with ExitStack() as stack:
        memory = []
        for nbytes in sizes:
            memory.append(device.allocate(nbytes))
            stack.callback(device.free, memory[-1])
        stack.callback(stream.synchronize)  # called first: nothing is freed while in use
        x_memory, w_memory, y_memory, scratch_memory = memory
        w, scratch_array = kind.weight_in(w_memory), DeviceArray(scratch_memory, 0, (1, scratch), WeightFormat.INT8)
        stream.prepare(w, kind.layout, kind.activations)
        for count in rows:
            x = DeviceArray(x_memory, 0, (count, kind.in_features), x_format)
            y = DeviceArray(y_memory, 0, (count, kind.columns), WeightFormat.FP32)
            stream.multiply(x, w, y, kind.layout, scratch_array, kind.activations)
