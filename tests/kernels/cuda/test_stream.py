"""Our kernels on a CudaDevice: on an emulation of CuPy in front of the shim, and on a GPU if there is one."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceLostError, DeviceUnavailableError, OutOfDeviceMemoryError
from offload.plan.scratch import MAX_ROWS, scratch_bytes
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat
from tests.device.support import download, linear, random_stored, to_float64, to_stored
from tests.kernels.cuda.device_memory import Memory
from tests.kernels.cuda.emulated_nvrtc import Emulated, EmulatedNvrtc
from tests.kernels.cuda.operands import TOLERANCE, BlockOperands

FP16, BF16, FP32, INT8 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32, WeightFormat.INT8
NK, KN = Layout.NK, Layout.KN


@pytest.fixture(params=["emulated cupy", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    if request.param == "emulated cupy":
        request.getfixturevalue("emulated")
    try:
        made = CudaDevice()
    except DeviceUnavailableError as error:
        pytest.skip(str(error))
    if request.param == "cuda" and made.without_kernels:
        made.close()
        pytest.skip(made.without_kernels)
    assert made.without_kernels == ""
    yield made
    made.close()


def check(y: Any, x: Any, w: Any) -> None:
    """`y` is x @ w, float64 both, as exactly as fp32 sums are; tensor cores cut them off rather than round."""
    tolerance = TOLERANCE if len(x) <= MAX_ROWS else 10 * TOLERANCE
    assert np.all(np.abs(y - x @ w) <= tolerance * (np.abs(x) @ np.abs(w)))  # false for NaN as well


def rounded(x: Any, form: WeightFormat) -> Any:
    """float64 of x rounded to a float format."""
    return to_float64(to_stored(x, form), form)


@pytest.mark.parametrize("rows", [1, 5, 9, 20])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("form", [FP32, FP16, BF16])
def test_float_weights(device: CudaDevice, form: WeightFormat, layout: Layout, rows: int) -> None:
    """Few rows are not rounded, many are rounded to the type of the weights that the GEMM takes."""
    multiplied = FP32 if form is BF16 and device.bf16_as_fp32 else form
    memory, rng = Memory(device), np.random.default_rng(rows)
    for columns, inner in ((72, 1000), (19, 43)):
        stored = random_stored(rng, (columns, inner) if layout is NK else (inner, columns), form)
        x = rng.standard_normal((rows, inner)).astype(np.float32)
        y = memory.multiply(x, memory.floats(stored, form), layout)
        w = to_float64(stored, form)
        check(y, x.astype(np.float64) if rows <= MAX_ROWS else rounded(x, multiplied), w if layout is KN else w.T)


def test_multiplications_in_the_same_place(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches are kept for the next time: with what the arrays hold then, and not for other arrays there."""
    monkeypatch.setattr("offload.devices.cuda.stream._MOST_BOUND", 3)
    device, rng = CudaDevice(), np.random.default_rng(0)
    memory = Memory(device)
    for form, (rows, inner, columns), layout in (
        (FP16, (2, 64, 48), NK),
        (BF16, (2, 64, 48), NK),
        (FP16, (2, 64, 64), NK),
        (FP16, (2, 64, 64), KN),
        (FP16, (4, 32, 24), NK),
        (FP16, (2, 64, 48), NK),
    ):
        for _ in range(2):
            memory.start_anew()
            stored = random_stored(rng, (columns, inner) if layout is NK else (inner, columns), form)
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            y = memory.multiply(x, memory.floats(stored, form), layout)
            w = to_float64(stored, form)
            check(y, x.astype(np.float64), w if layout is KN else w.T)
        assert 0 < len(memory.stream._bound) <= 3
    device.close()


def values_of_blocks(operands: BlockOperands, rows: int, activations: Activations) -> tuple[Any, Any]:
    """float64 of the x and W that are multiplied."""
    w = operands.dequantised().astype(np.float64)
    x = operands.x.astype(np.float64)
    if rows > MAX_ROWS:
        return rounded(x, FP16), rounded(w, FP16).T
    if activations is Activations.INT8:
        codes, scales = operands.quantised_x()
        x = (codes * scales[:, :, None].astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]]
    return x, w.T


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize("rows", [1, 5, 9, 20])
@pytest.mark.parametrize("form", [BlockFormat(4, 32, FP16, True), BlockFormat(8, 64, FP32)], ids=["int4", "int8"])
def test_weights_in_blocks(device: CudaDevice, form: BlockFormat, rows: int, activations: Activations) -> None:
    memory = Memory(device)
    for columns, inner in ((22, 1056), (7, 43)):
        operands = BlockOperands.random(form, form.zeros, rows, columns, inner)
        y = memory.multiply(operands.x, memory.blocks(operands), NK, activations)
        check(y, *values_of_blocks(operands, rows, activations))


def test_many_panels(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 columns in panels of 16: each goes to its own columns of y."""
    monkeypatch.setattr("offload.plan.scratch.PANEL_BYTES", 16 * 256 * 2)
    operands = BlockOperands.random(BlockFormat(4, 64, FP16, True), True, 10, 100, 256)
    memory = Memory(device)
    device.start_trace()
    y = memory.multiply(operands.x, memory.blocks(operands), NK)
    check(y, *values_of_blocks(operands, 10, Activations.FLOAT))
    names = [span.name for span in device.take_trace()]
    assert names.count("gemm 10x256x100") == 1


@pytest.mark.parametrize("panel_bytes", [16 << 20, 16 * 256 * 4])
@pytest.mark.parametrize("layout", list(Layout))
def test_bf16_where_no_gemm_takes_it(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, layout: Layout, panel_bytes: int
) -> None:
    """Its weights are expanded to fp32, and x is not rounded however many rows there are."""
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, form: form is not BF16)
    monkeypatch.setattr("offload.plan.scratch.PANEL_BYTES", panel_bytes)
    emulated.cupy.refused_types = {14}
    device, rng = CudaDevice(), np.random.default_rng(0)
    assert (device.supports(BF16), device.input_format(BF16)) == ("", FP32)
    memory = Memory(device)
    for columns, inner in ((100, 256), (37, 43)):
        stored = random_stored(rng, (columns, inner) if layout is NK else (inner, columns), BF16)
        for rows in (3, 20):
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            y = memory.multiply(x, memory.floats(stored, BF16), layout)
            w = to_float64(stored, BF16)
            check(y, x.astype(np.float64), w if layout is KN else w.T)
    device.close()


@pytest.mark.parametrize("rows", [2, 20])
def test_scratch_memory_that_is_too_small_is_not_written_to(device: CudaDevice, rows: int) -> None:
    operands = BlockOperands.random(BlockFormat(8, 64, FP16), False, rows, 16, 512)
    memory = Memory(device)
    w, x = memory.blocks(operands), memory.floats(operands.x, FP32)
    y, scratch = memory.array((rows, 16), FP32), memory.array((1, 256), INT8)
    with pytest.raises(ValueError, match=r"needs \d+ bytes of scratch memory, not 256"):
        memory.stream.multiply(x, w, y, NK, scratch, Activations.INT8)


def test_scratch_memory_for_many_columns_is_enough_for_few() -> None:
    """A plan counts the widest Linear: wide ones are not split, narrow ones are."""
    form = BlockFormat(8, 64, FP16)
    for blocks, weight_format in ((None, FP16), (None, BF16), (form, INT8)):
        for rows in (1, 8, 9, 300):
            most = scratch_bytes(rows, 200_000, 4096, weight_format, blocks)
            for columns in (1, 100, 2000, 16_384, 70_000):
                for count in {1, min(rows, 8), rows}:
                    assert scratch_bytes(count, columns, 4096, weight_format, blocks) <= most
    assert scratch_bytes(300, 1000, 4096, FP32, None) == 0


@pytest.mark.parametrize("nbytes", [4, 100, 4096, 40_000])
def test_fetch_is_a_copy(device: CudaDevice, nbytes: int) -> None:
    memory = Memory(device)
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    pinned = device.allocate_pinned(nbytes)
    pinned[:] = data
    array = memory.array((1, nbytes), INT8)
    device.start_trace()
    memory.stream.fetch(array, pinned)
    assert [span.name for span in device.take_trace()] == [f"copy-in {nbytes} B"]
    assert np.array_equal(download(device, memory.stream, array)[0], data)


def test_fetch_sees_what_the_host_wrote_last(device: CudaDevice) -> None:
    """No cache on the way keeps what was there before, however small the step."""
    memory = Memory(device)
    pinned, back = device.allocate_pinned(4096).view(np.uint32), device.allocate_pinned(4096).view(np.uint32)
    array = memory.array((1, 1024), FP32)
    for step in range(20):
        pinned[:] = step
        memory.stream.fetch(array, pinned)
        memory.stream.copy_to_host(back, array)
        memory.stream.synchronize()
        assert np.all(back == step)


def test_another_thread_may_go_on(device: CudaDevice) -> None:
    """As where a program loads a model in one thread and runs it in another, which has no device to begin with."""
    memory = Memory(device)
    array, pinned = memory.array((1, 1024), INT8), device.allocate_pinned(1024)
    pinned[:] = 7
    with ThreadPoolExecutor(1) as pool:
        pool.submit(memory.stream.fetch, array, pinned).result()
    assert np.all(download(device, memory.stream, array) == 7)


def test_fetch_uses_no_copy_engine(emulated: Emulated) -> None:
    device = CudaDevice()
    memory = Memory(device)
    array, pinned = memory.array((1, 64), INT8), device.allocate_pinned(64)
    emulated.cupy.calls.clear()
    memory.stream.fetch(array, pinned)
    assert emulated.cupy.calls == []
    assert emulated.nvrtc.launched[-1] == ("fetch", memory.stream._address)
    emulated.cupy.properties["unifiedAddressing"] = 0  # where kernels cannot read it, it is copied
    memory.stream.fetch(array, pinned)
    assert [name for name, _ in emulated.cupy.calls] == ["memcpyAsync"]


def test_a_kernel_is_on_the_timeline(device: CudaDevice) -> None:
    memory = Memory(device)
    w, x = memory.array((24, 64), FP16), memory.array((2, 64), FP32)
    y, scratch = memory.array((2, 24), FP32), memory.array((1, scratch_bytes(2, 24, 64, FP16, None)), INT8)
    device.start_trace()
    memory.stream.multiply(x, w, y, NK, scratch)
    assert [span.name for span in device.take_trace()] == ["gemm 2x64x24"]


# What works without kernels.


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"broken": "libnvrtc is\nmissing"}, "NVRTC cannot be loaded .*: libnvrtc is missing"),
        ({"capabilities": (90, 120)}, "NVRTC 12.9 compiles for sm_90 and newer, not for sm_75"),
        ({"refuses": "no kernel image"}, "the driver cannot load the kernel fetch .*update the driver"),
    ],
)
def test_without_nvrtc_cublas_multiplies_rounded_rows(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any, why: str
) -> None:
    EmulatedNvrtc(**settings).install(monkeypatch, emulated.cupy, tmp_path)
    device, rng = CudaDevice(), np.random.default_rng(0)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(device.without_kernels)
    assert "\n" not in device.without_kernels
    assert device.supports(INT8) == f"int8 takes kernels of our own: {device.without_kernels}"
    memory = Memory(device)
    for form in (FP16, BF16, FP32):
        assert (device.supports(form), device.input_format(form)) == ("", form)
        stored = random_stored(rng, (24, 64), form)
        for rows in (1, 20):
            x = rng.standard_normal((rows, 64)).astype(np.float32)
            check(memory.multiply(x, memory.floats(stored, form), NK), rounded(x, form), to_float64(stored, form).T)
    device.warm_up([linear("q", "q", 64, 32)], 20)
    device.close()


def test_kernels_that_give_wrong_values_are_not_used(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.devices.cuda.compiler.program", wrong_sums)
    assert CudaDevice().without_kernels == "our own kernels give wrong values on Emulated GPU"


def wrong_sums(file: str) -> str:
    from offload.devices.cuda.kernels.sources import program

    return program(file).replace("bias[column] : 0.0f", "bias[column] : 1.0f")


# Devices that fail.


def test_a_lost_device_is_left_alone_when_it_is_gone(emulated: Emulated) -> None:
    """CuPy unloads modules with their objects, which of a lost context is an error that nobody can catch."""
    device = CudaDevice()
    emulated.cupy.broken = 700
    with pytest.raises(DeviceLostError):
        device.memory()
    entered = emulated.cupy.entered
    device.close()
    del device
    gc.collect()
    assert emulated.cupy.entered == entered


@pytest.mark.parametrize(("status", "error"), [(2, OutOfDeviceMemoryError), (700, DeviceLostError)])
@pytest.mark.parametrize("call", ["launchKernel", "moduleLoad"])
def test_launches_fail_as_other_calls_do(emulated: Emulated, call: str, status: int, error: Any) -> None:
    device = CudaDevice()
    memory = Memory(device)
    w = memory.array((8, 64), FP16)
    emulated.cupy.fault = lambda name: status if name == call else 0
    with pytest.raises(error):
        memory.multiply(np.ones((3, 64), np.float32), w, NK)
