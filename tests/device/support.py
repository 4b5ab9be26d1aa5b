"""Weights, placements and plans for device tests, and a plain host backend."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from offload.devices.base import DeviceArray, DeviceBlocks, DeviceWeight
from offload.host.base import HostColumns
from offload.plan.plan import LinearPlacement, Plan, Prediction, Prefill, StreamRing
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import Activations, BlockFormat, ColumnRange, Layout, LinearSpec, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from offload.storage.weight_file import FileRange, WeightFile
from tests.quantised import exact, seen


def to_stored(values: Any, weight_format: WeightFormat) -> HostArray:
    """Round to a float format, in its storage dtype."""
    if weight_format is WeightFormat.BF16:
        return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return np.asarray(values).astype(weight_format.storage_dtype)


def to_float64(stored: HostArray, weight_format: WeightFormat) -> Any:
    """The exact values of a float format."""
    return (stored.view(ml_dtypes.bfloat16) if weight_format is WeightFormat.BF16 else stored).astype(np.float64)


def random_stored(rng: np.random.Generator, shape: tuple[int, int], weight_format: WeightFormat) -> HostArray:
    """Normal values in a float format."""
    return to_stored(rng.standard_normal(shape), weight_format)


def upload(device: Any, stream: Any, allocation: Any, offset_bytes: int, stored: HostArray, form: WeightFormat) -> Any:
    """Copy a matrix to a place on the device."""
    array = DeviceArray(allocation, offset_bytes, stored.shape, form)
    pinned = device.allocate_pinned(stored.nbytes)
    pinned[:] = stored.reshape(-1).view(np.uint8)
    stream.copy_to_device(array, pinned)
    stream.synchronize()
    return array


def download(device: Any, stream: Any, array: DeviceArray) -> HostArray:
    """Copy a matrix back, in its storage dtype."""
    pinned = device.allocate_pinned(array.nbytes)
    stream.copy_to_host(pinned, array)
    stream.synchronize()
    return pinned.view(array.format.storage_dtype).reshape(array.shape).copy()


def upload_blocks(device: Any, stream: Any, allocation: Any, offset_bytes: int, weight: StoredWeight) -> DeviceBlocks:
    """Copy a block-quantised weight to a place on the device."""
    stored = np.concatenate([array.array().reshape(-1).view(np.uint8) for array in weight.arrays])
    w = DeviceBlocks(allocation, offset_bytes, weight.out_features, weight.in_features, weight.blocks)
    upload(device, stream, allocation, offset_bytes, stored[None], WeightFormat.INT8)
    return w


def scratch_for(device: Any, rows: int, w: DeviceWeight, layout: Layout = Layout.NK) -> DeviceArray:
    """Just as much scratch memory as multiplications of up to so many rows with a weight may need."""
    if isinstance(w, DeviceBlocks):
        nbytes = scratch_bytes(rows, w.columns, w.in_features, w.blocks.format, w.blocks)
    else:
        inner, columns = w.shape if layout is Layout.KN else w.shape[::-1]
        nbytes = scratch_bytes(rows, columns, inner, w.format, None)
    return DeviceArray(device.allocate(aligned(nbytes + 1)), 0, (1, nbytes), WeightFormat.INT8)


def multiply(
    device: Any,
    stream: Any,
    x: Any,
    w: DeviceWeight,
    layout: Layout = Layout.NK,
    activations: Activations = Activations.FLOAT,
) -> HostArray:
    """x[M, K] @ W on a device, in memory of its own; x is stored as the device takes it."""
    columns = w.columns if isinstance(w, DeviceBlocks) else w.shape[layout is Layout.KN]
    x_format = device.input_format(w.blocks.format if isinstance(w, DeviceBlocks) else w.format)
    stored, y_shape = to_stored(x, x_format), (len(x), columns)
    memory, scratch = (
        device.allocate(aligned(stored.nbytes) + 4 * len(x) * columns),
        scratch_for(device, len(x), w, layout),
    )
    x_array = upload(device, stream, memory, 0, stored, x_format)
    y_array = DeviceArray(memory, aligned(stored.nbytes), y_shape, WeightFormat.FP32)
    stream.multiply(x_array, w, y_array, layout, scratch, activations)
    y = download(device, stream, y_array)
    device.free(memory)
    device.free(scratch.allocation)
    return y


def int8_blocks(x: Any, block: int) -> Any:
    """fp32 x[M, K] as float64 after rounding to int8 with a scale for each block of K, as devices do it."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    scales = np.abs(padded).max(-1, keepdims=True) / np.float32(127)
    return (np.rint(padded * (1 / scales)) * scales.astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]]


def linear(
    name: str,
    group: str,
    in_features: int,
    out_features: int,
    weight_format: WeightFormat = WeightFormat.FP16,
    layout: Layout = Layout.NK,
) -> LinearSpec:
    """A LinearSpec with the usual byte count."""
    return LinearSpec(
        name=name,
        in_features=in_features,
        out_features=out_features,
        format=weight_format,
        layout=layout,
        weight_bytes=in_features * out_features * weight_format.itemsize_bytes,
        kind=name,
        layer="0",
        group=group,
    )


def blocks_linear(
    name: str,
    group: str,
    in_features: int,
    out_features: int,
    blocks: BlockFormat,
    activations: Activations = Activations.FLOAT,
) -> LinearSpec:
    """A LinearSpec whose weight is block-quantised."""
    weight_bytes = out_features * blocks.column_bytes(in_features)
    return LinearSpec(
        name,
        in_features,
        out_features,
        blocks.format,
        Layout.NK,
        weight_bytes,
        kind=name,
        layer="0",
        group=group,
        blocks=blocks,
        activations=activations,
    )


def place(
    spec: LinearSpec,
    resident: float,
    streamed: float,
    prefill: float = 0.0,
    host_format: WeightFormat | None = None,
) -> LinearPlacement:
    """Give the first columns to the device, by fractions, `prefill` only in prefill; the rest is host."""
    first = round(resident * spec.out_features)
    second = first + round(streamed * spec.out_features)
    return LinearPlacement(
        spec,
        ColumnRange(0, first),
        ColumnRange(first, second),
        ColumnRange(second, spec.out_features),
        "test",
        host_format or spec.format,
        prefill_stop=second + round(prefill * spec.out_features) if prefill else 0,
    )


def make_plan(
    placements: Sequence[LinearPlacement], chunk_tokens: int, slots: int, slot_bytes: int, prefill_tokens: int = 0
) -> Plan:
    """A plan that only says what execution needs."""
    return Plan(
        model="test",
        machine={},
        budget_bytes=0,
        chunk_tokens=chunk_tokens,
        prefill_tokens=prefill_tokens,
        ring=StreamRing(slots, slot_bytes),
        vram_bytes={},
        ram_bytes={},
        placements=tuple(placements),
        predicted=Prediction(1.0, 1.0, "bus", 0, {"bus": 1.0}),
        at_depths=(),
        prefill=Prefill(chunk_tokens, 1.0, 1.0, "bus"),
    )


def as_stored(spec: LinearSpec, matrix: HostArray) -> StoredWeight:
    """A matrix of floats as the weight of a Linear."""
    return StoredWeight.dense(matrix, spec.format, spec.layout)


def in_file(weights: Mapping[str, StoredWeight], path: Path, header_bytes: int = 0) -> dict[str, StoredWeight]:
    """The same weights in a file, their arrays one after another."""
    with path.open("wb") as file:
        file.write(bytes(header_bytes))
        for weight in weights.values():
            for array in weight.arrays:
                file.write(array.array().tobytes())
    there, offset, found = WeightFile.at(path), header_bytes, {}
    for name, weight in weights.items():
        arrays = []
        for array in weight.arrays:
            arrays.append(StoredArray.at(FileRange(there, offset, array.nbytes), array.dtype, array.shape))
            offset += array.nbytes
        found[name] = replace(weight, arrays=tuple(arrays))
    return found


def in_one_block(weights: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """Copies that lie one after another in memory of ours, as host columns do."""
    block = np.empty(sum(aligned(weight.nbytes) for weight in weights.values()), np.uint8)
    copies, position = {}, 0
    for name, weight in weights.items():
        part = block[position : position + weight.nbytes]
        copies[name] = StoredWeight.over(part, weight.storage, weight.in_features, weight.out_features)
        for target, array in zip(copies[name].arrays, weight.arrays, strict=True):
            array.read_into(target.array())
        position += aligned(weight.nbytes)
    return copies


class NumpyHost:
    """A host backend of plain NumPy."""

    def group(self, columns: Sequence[HostColumns]) -> "NumpyHostGroup":
        return NumpyHostGroup(columns)


class NumpyHostGroup:
    def __init__(self, columns: Sequence[HostColumns]) -> None:
        self._columns = columns

    def multiply(self, x: Any, outputs: Sequence[Any]) -> None:
        for part, output in zip(self._columns, outputs, strict=True):
            seen_x = x
            storage = part.weight.storage
            if isinstance(storage, BlockFormat):
                weight = exact(part.weight).T
                seen_x = seen(x, storage.block, part.activations)
            else:
                weight = to_float64(part.weight.arrays[0].array(), storage.format)
                weight = weight if storage.layout is Layout.KN else weight.T
            output[:, part.start : part.stop] = seen_x @ weight


def row(allocation: Any, start: int, stop: int) -> DeviceArray:
    """fp32 numbers in bytes [start, stop) of an allocation."""
    return DeviceArray(allocation, start, (1, (stop - start) // 4), WeightFormat.FP32)
