"""Our kernels on a CudaDevice: on an emulation of CuPy in front of the shim, and on a GPU if there is one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_kernels import BlockWeight, FloatWeight, Int8Rows
from offload.errors import DeviceUnavailableError
from offload.kernels.cuda.launch import BlockFormat
from offload.specs import ColumnRange, Layout, WeightFormat
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.support import download
from tests.kernels.emulated_nvrtc import EmulatedNvrtc
from tests.kernels.operands import BlockOperands, FloatOperands

FP16, BF16, FP32 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EmulatedNvrtc:
    """CuPy with NVRTC, and a home folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, weight_format: True)
    EmulatedCupy().install(monkeypatch)
    nvrtc = EmulatedNvrtc()
    nvrtc.install(monkeypatch)
    return nvrtc


@pytest.fixture(params=["emulated cupy", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    if request.param == "emulated cupy":
        request.getfixturevalue("nvrtc")
    try:
        made = CudaDevice()
    except DeviceUnavailableError as error:
        pytest.skip(str(error))
    yield made
    made.close()


class Memory:
    """One block of a device, given out from its beginning."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.stream = device, device.stream("compute")
        self._block, self._used = device.allocate(8 << 20), 0

    def array(self, shape: tuple[int, int], form: WeightFormat) -> DeviceArray:
        made = DeviceArray(self._block, self._used, shape, form)
        self._used += -(-made.nbytes // 256) * 256
        return made

    def put(self, values: Any, form: WeightFormat = FP16) -> DeviceArray:
        """A copy of a numpy array; bytes are kept as pairs."""
        pairs = -(-values.nbytes // 2)
        made = self.array((1, pairs), FP16) if values.dtype != np.float32 else self.array(values.shape, FP32)
        pinned = self.device.allocate_pinned(made.nbytes)
        pinned[: values.nbytes] = values.reshape(-1).view(np.uint8)
        self.stream.copy_to_device(made, pinned)
        self.stream.synchronize()
        return made

    def address(self, array: DeviceArray) -> int:
        return self._block.address + array.offset_bytes

    def blocks(self, operands: BlockOperands) -> BlockWeight:
        numbers, scales, zeros = (
            self.address(self.put(part)) for part in (operands.numbers, operands.scales, operands.zeros)
        )
        weight = operands.weight
        return BlockWeight(numbers, scales, zeros, weight.format, weight.columns, weight.inner)

    def multiply(self, x: DeviceArray | Int8Rows, weight: FloatWeight | BlockWeight, rows: int) -> Any:
        y = self.array((rows, weight.columns), FP32)
        scratch = self.array((1, self.device.kernels.scratch_bytes(rows, weight) // 4), FP32)
        self.stream.multiply_rows(x, weight, y, scratch if scratch.nbytes else None)
        return download(self.device, self.stream, y)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("form", [FP16, BF16])
def test_half_weights(device: CudaDevice, form: WeightFormat, layout: Layout, rows: int) -> None:
    memory = Memory(device)
    for columns, inner in ((72, 1000), (19, 43)):
        operands = FloatOperands.random(form, layout, rows, columns, inner)
        weight = FloatWeight(memory.address(memory.put(operands.w)), form, layout, columns, inner)
        operands.check(memory.multiply(memory.put(operands.x), weight, rows), with_bias=False)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights(device: CudaDevice, bits: int, rows: int) -> None:
    memory = Memory(device)
    operands = BlockOperands.random(BlockFormat(bits, 32, FP16), True, rows, 22, 1056)
    weight, x = memory.blocks(operands), memory.put(operands.x)
    operands.check(memory.multiply(x, weight, rows), with_bias=False)
    numbers_bytes, scales_bytes = Int8Rows.sizes_bytes(rows, 1056, 32)
    parts = [memory.array((1, nbytes // 4), FP32) for nbytes in (numbers_bytes, scales_bytes)]
    int8_x = Int8Rows(memory.address(parts[0]), memory.address(parts[1]), rows, 32, 1056)
    memory.stream.quantise_rows(x, int8_x)
    operands.check_int8(memory.multiply(int8_x, weight, rows), with_bias=False)


@pytest.mark.parametrize("panel", [FP16, FP32])
def test_panels(device: CudaDevice, panel: WeightFormat) -> None:
    memory = Memory(device)
    operands = BlockOperands.random(BlockFormat(4, 32, FP16), True, 1, 9, 104)
    out = memory.array((4, 104), panel)
    memory.stream.dequantise(memory.blocks(operands), ColumnRange(3, 7), out)
    expected = operands.dequantised()[3:7].astype(panel.storage_dtype)
    assert np.array_equal(download(device, memory.stream, out), expected)


def test_a_kernel_is_on_the_timeline(device: CudaDevice) -> None:
    memory = Memory(device)
    operands = FloatOperands.random(FP16, Layout.NK, 2, 24, 64)
    weight = FloatWeight(memory.address(memory.put(operands.w)), FP16, Layout.NK, 24, 64)
    x = memory.put(operands.x)
    device.start_trace()
    memory.multiply(x, weight, 2)
    assert "multiply 2x64x24" in [span.name for span in device.take_trace()]


def test_a_device_without_nvrtc_works_until_a_kernel_is_asked_for(nvrtc: EmulatedNvrtc) -> None:
    nvrtc.broken = "libnvrtc is missing"
    device = CudaDevice()
    with pytest.raises(DeviceUnavailableError, match="NVRTC cannot be loaded"):
        device.kernels.scratch_bytes(1, FloatWeight(0, FP16, Layout.NK, 8, 8))
    device.close()
