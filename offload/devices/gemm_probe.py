"""A trial of a device's GEMM: does a format give right values here?"""

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceArray, HostArray
from offload.specs import Layout, WeightFormat

_ROWS, _INNER, _COLUMNS = (1, 16, 64), 256, 256


def gemm_is_exact(device: Device, weight_format: WeightFormat) -> bool:
    """Multiply small integers, which every float format holds and fp32 adds exactly, in both layouts.

    The shapes take the kernels for few and for many rows, so libraries load what they need.
    """
    itemsize = weight_format.itemsize_bytes
    sizes = (_ROWS[-1] * _INNER * itemsize, _INNER * _COLUMNS * itemsize, _ROWS[-1] * _COLUMNS * 4)
    x_pinned, w_pinned, y_pinned = (device.allocate_pinned(nbytes) for nbytes in sizes)
    rng = np.random.default_rng(0)
    stream = device.stream("probe")
    blocks = [device.allocate(nbytes) for nbytes in sizes]
    try:
        for rows in _ROWS:
            for layout in Layout:
                x = rng.integers(-8, 9, (rows, _INNER)).astype(np.float32)
                w = rng.integers(-8, 9, (_INNER, _COLUMNS)).astype(np.float32)
                stored = w if layout is Layout.KN else np.ascontiguousarray(w.T)
                x_array = DeviceArray(blocks[0], 0, (rows, _INNER), weight_format)
                w_array = DeviceArray(blocks[1], 0, (stored.shape[0], stored.shape[1]), weight_format)
                y_array = DeviceArray(blocks[2], 0, (rows, _COLUMNS), WeightFormat.FP32)
                x_pinned[: x_array.nbytes] = _stored(x, weight_format)
                w_pinned[: w_array.nbytes] = _stored(stored, weight_format)
                y_bytes = y_pinned[: y_array.nbytes]
                y_bytes[:] = 0xFF
                stream.copy_to_device(x_array, x_pinned[: x_array.nbytes])
                stream.copy_to_device(w_array, w_pinned[: w_array.nbytes])
                stream.gemm(x_array, w_array, y_array, layout)
                stream.copy_to_host(y_bytes, y_array)
                stream.synchronize()
                if not np.array_equal(y_bytes.view(np.float32).reshape(rows, _COLUMNS), x @ w):
                    return False
        return True
    finally:
        stream.synchronize()
        for block in blocks:
            device.free(block)


def _stored(values: npt.NDArray[np.float32], weight_format: WeightFormat) -> npt.NDArray[np.uint8]:
    """Small integers as the bytes of a float format."""
    if weight_format is WeightFormat.BF16:  # the upper half of an fp32
        stored: HostArray = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(weight_format.storage_dtype)
    return stored.reshape(-1).view(np.uint8)
