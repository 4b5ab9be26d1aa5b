"""Memory of a CUDA device for operands of multiplications."""

from typing import Any

import numpy as np

from offload.devices.base import DeviceArray, DeviceBlocks, DeviceWeight
from offload.devices.cuda.device import CudaDevice
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import aligned
from offload.spec.linear import Activations, Layout, WeightFormat
from tests.device.support import download, to_stored
from tests.kernels.cuda.operands import BlockOperands

FP32, INT8 = WeightFormat.FP32, WeightFormat.INT8
NK = Layout.NK


class Memory:
    """One block of a device, given out from its beginning."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.stream = device, device.stream("compute")
        self._block, self._used = device.allocate(8 << 20), 0

    def start_anew(self) -> None:
        """Give out the same places again."""
        self._used = 0

    def place(self, nbytes: int) -> tuple[Any, int]:
        """An allocation and an offset."""
        self._used += aligned(nbytes)
        return self._block, self._used - aligned(nbytes)

    def array(self, shape: tuple[int, int], form: WeightFormat) -> DeviceArray:
        return DeviceArray(*self.place(shape[0] * shape[1] * form.itemsize_bytes), shape, form)

    def put(self, array: DeviceArray, values: Any) -> DeviceArray:
        pinned = self.device.allocate_pinned(array.nbytes)
        pinned[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.stream.copy_to_device(array, pinned)
        self.stream.synchronize()
        return array

    def floats(self, values: Any, form: WeightFormat) -> DeviceArray:
        """A copy of a matrix in the storage type of `form`."""
        return self.put(self.array(values.shape, form), values)

    def blocks(self, operands: BlockOperands) -> DeviceBlocks:
        form, columns, inner = operands.weight.format, operands.weight.columns, operands.weight.inner
        made = DeviceBlocks(*self.place(columns * form.column_bytes(inner)), columns, inner, form)
        parts = [operands.codes, operands.scales, *([] if operands.zeros is None else [operands.zeros])]
        self.put(made.whole, np.concatenate([part.reshape(-1).view(np.uint8) for part in parts]))
        return made

    def multiply(self, x: Any, w: DeviceWeight, layout: Layout, activations: Activations = Activations.FLOAT) -> Any:
        """y for fp32 x[M, K], with exactly as much scratch memory as a plan would have."""
        rows, inner = x.shape
        blocks = w.blocks if isinstance(w, DeviceBlocks) else None
        form = blocks.format if blocks else w.format  # type: ignore[union-attr]
        columns = w.columns if isinstance(w, DeviceBlocks) else w.shape[0 if layout is NK else 1]
        x_format = self.device.input_format(form)
        x_array = self.floats(to_stored(x, x_format), x_format)
        y = self.put(self.array((rows, columns), FP32), np.full((rows, columns), np.nan, np.float32))
        scratch = self.array((1, scratch_bytes(rows, columns, inner, form, blocks)), INT8)
        guard = self.put(self.array((1, 64), INT8), np.full(64, 0xA5, np.uint8))
        self.stream.multiply(x_array, w, y, layout, scratch, activations)
        assert np.all(download(self.device, self.stream, guard) == 0xA5)
        return download(self.device, self.stream, y)
