"""Trials of a device: does it give right values here?"""

from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceArray
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import HostArray
from offload.spec.linear import Layout, WeightFormat

_ROWS, _INNER, _COLUMNS = (1, 16, 64), 256, 256
_FP16, _FP32 = WeightFormat.FP16, WeightFormat.FP32


def gemm_is_exact(device: Device, weight_format: WeightFormat) -> bool:
    """Multiply x and weights of a format by the library's GEMM, in both layouts.

    The shapes take the kernels for few and for many rows, so libraries load what they need.
    """
    with ExitStack() as stack:
        probe = _Probe(device, stack)
        return all(probe.is_exact(weight_format, weight_format, rows, layout) for rows in _ROWS for layout in Layout)


def kernels_are_exact(device: Device) -> bool:
    """Multiply one row of fp32 with fp16 weights, as kernels of our own do; one of them fetches the row as well."""
    with ExitStack() as stack:
        return _Probe(device, stack).is_exact(_FP32, _FP16, 1, Layout.NK)


class _Probe:
    """Memory for a multiplication of small integers, which every float format holds and fp32 adds exactly."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        sizes = (_ROWS[-1] * _INNER * 4, _INNER * _COLUMNS * 4, _ROWS[-1] * _COLUMNS * 4)
        self._pinned = [device.allocate_pinned(nbytes) for nbytes in sizes]
        self._stream = device.stream("probe")
        self._memory = []
        for nbytes in (*sizes, scratch_bytes(_ROWS[0], _COLUMNS, _INNER, _FP16, None)):
            self._memory.append(device.allocate(nbytes))
            stack.callback(device.free, self._memory[-1])
        stack.callback(self._stream.synchronize)  # called first: nothing is freed while in use
        self._rng = np.random.default_rng(0)

    def is_exact(self, x_format: WeightFormat, weight_format: WeightFormat, rows: int, layout: Layout) -> bool:
        """Tell whether y = x @ W is right to the bit."""
        x = self._rng.integers(-8, 9, (rows, _INNER)).astype(np.float32)
        w = self._rng.integers(-8, 9, (_INNER, _COLUMNS)).astype(np.float32)
        stored = w if layout is Layout.KN else np.ascontiguousarray(w.T)
        x_memory, w_memory, y_memory, scratch_memory = self._memory
        x_array = DeviceArray(x_memory, 0, (rows, _INNER), x_format)
        w_array = DeviceArray(w_memory, 0, (stored.shape[0], stored.shape[1]), weight_format)
        y_array = DeviceArray(y_memory, 0, (rows, _COLUMNS), _FP32)
        scratch = DeviceArray(scratch_memory, 0, (1, scratch_memory.nbytes), WeightFormat.INT8)
        x_bytes, w_bytes, y_bytes = (
            pinned[: array.nbytes] for pinned, array in zip(self._pinned, (x_array, w_array, y_array), strict=True)
        )
        x_bytes[:], w_bytes[:], y_bytes[:] = _stored(x, x_format), _stored(stored, weight_format), 0xFF
        self._stream.fetch(x_array, x_bytes)
        self._stream.copy_to_device(w_array, w_bytes)
        self._stream.multiply(x_array, w_array, y_array, layout, scratch)
        self._stream.copy_to_host(y_bytes, y_array)
        self._stream.synchronize()
        return np.array_equal(y_bytes.view(np.float32).reshape(rows, _COLUMNS), x @ w)


def _stored(values: npt.NDArray[np.float32], weight_format: WeightFormat) -> npt.NDArray[np.uint8]:
    """Small integers as the bytes of a float format."""
    if weight_format is WeightFormat.BF16:  # the upper half of an fp32
        stored: HostArray = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(weight_format.storage_dtype)
    return stored.reshape(-1).view(np.uint8)
