"""Our kernels on a CudaDevice: on an emulation of CuPy in front of the shim, and on a GPU if there is one."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray, DeviceBlocks, DeviceWeight, aligned
from offload.devices.cuda import CudaDevice
from offload.devices.scratch import MAX_ROWS, scratch_bytes
from offload.errors import DeviceLostError, DeviceUnavailableError, OutOfDeviceMemoryError
from offload.specs import Activations, BlockFormat, Layout, LinearSpec, WeightFormat
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.support import download, linear, random_stored, to_float64, to_stored
from tests.kernels.emulated_nvrtc import EmulatedNvrtc
from tests.kernels.operands import TOLERANCE, BlockOperands

FP16, BF16, FP32, INT8 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32, WeightFormat.INT8
NK, KN = Layout.NK, Layout.KN


@dataclass
class Emulated:
    """CuPy and NVRTC."""

    cupy: EmulatedCupy
    nvrtc: EmulatedNvrtc


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Emulated:
    """CuPy with NVRTC, and a home folder of its own."""
    monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, weight_format: True)
    made = Emulated(EmulatedCupy(), EmulatedNvrtc())
    made.nvrtc.install(monkeypatch, made.cupy, tmp_path)
    return made


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
        parts = [operands.numbers, operands.scales, *([] if operands.zeros is None else [operands.zeros])]
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
    monkeypatch.setattr("offload.devices.cuda_stream._MOST_BOUND", 3)
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
        numbers, scales = operands.quantised_x()
        x = (numbers * scales[:, :, None].astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]]
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
    monkeypatch.setattr("offload.devices.scratch.PANEL_BYTES", 16 * 256 * 2)
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
    monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, form: form is not BF16)
    monkeypatch.setattr("offload.devices.scratch.PANEL_BYTES", panel_bytes)
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
    monkeypatch.setattr("offload.devices.cuda_compiler.program", wrong_sums)
    assert CudaDevice().without_kernels == "our own kernels give wrong values on Emulated GPU"


def wrong_sums(file: str) -> str:
    from offload.kernels.cuda.sources import program

    return program(file).replace("bias[column] : 0.0f", "bias[column] : 1.0f")


# Warming up.


def blocked(spec: LinearSpec, form: BlockFormat, activations: Activations = Activations.INT8) -> LinearSpec:
    return replace(spec, format=form.format, blocks=form, activations=activations)


LINEARS = (
    linear("q", "q", 512, 1200),
    linear("k", "q", 256, 64),
    linear("up", "up", 256, 2000, BF16, KN),
    linear("head", "head", 43, 2048, FP32),
    blocked(linear("o", "o", 136, 64), BlockFormat(8, 64, FP16)),
    blocked(linear("down", "down", 136, 64), BlockFormat(4, 32, FP16, True), Activations.FLOAT),
)


def test_a_warm_up_compiles_and_runs_all_that_steps_need(emulated: Emulated) -> None:
    """No step compiles, loads or allocates anything, on the device or the host, and none waits."""
    device = CudaDevice()
    blocks = dict(emulated.cupy.blocks)
    device.warm_up(LINEARS, 40)
    assert emulated.cupy.blocks == blocks, "it gave all back"
    compiled = len(emulated.nvrtc.compiled)
    memory, work = Memory(device), []
    for spec in LINEARS:
        columns, inner = min(spec.out_features, 64), spec.in_features
        shape = (columns, inner) if spec.layout is NK else (inner, columns)
        w: DeviceWeight = (
            DeviceBlocks(*memory.place(1 << 16), columns, inner, spec.blocks)
            if spec.blocks
            else (memory.array(shape, spec.format))
        )
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 40):
            x, y = memory.array((rows, inner), FP32), memory.array((rows, columns), FP32)
            nbytes = scratch_bytes(rows, columns, inner, spec.format, spec.blocks)
            work.append((x, w, y, spec.layout, memory.array((1, nbytes), INT8), spec.activations))
    pinned = device.allocate_pinned(1024)
    calls: list[str] = []
    emulated.cupy.fault = lambda name: calls.append(name) or 0  # type: ignore[func-returns-value]
    for operands in work:
        memory.stream.fetch(memory.array((1, 1024), INT8), pinned)
        memory.stream.multiply(*operands)
    assert set(calls) == {"launchKernel", "getDevice", "gemm"}
    assert len(emulated.nvrtc.compiled) == compiled
    device.close()


def test_a_warm_up_is_kept_for_the_next_run(emulated: Emulated) -> None:
    CudaDevice().warm_up(LINEARS, 40)
    compiled = len(emulated.nvrtc.compiled)
    CudaDevice().warm_up(LINEARS[::-1], 20)
    assert len(emulated.nvrtc.compiled) == compiled


def test_what_a_warm_up_loads_is_counted(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice()
    before = device.fixed_bytes
    load = emulated.nvrtc.load
    monkeypatch.setattr(emulated.nvrtc, "load", lambda code: (emulated.cupy.malloc(1000), load(code))[1])
    device.warm_up(LINEARS, 1)
    taken = device.fixed_bytes["workspace"] - before["workspace"]
    assert taken >= 4000
    assert taken % 1000 == 0
    assert device.fixed_bytes["context"] == before["context"]


def test_a_warm_up_leaves_out_what_is_not_supported(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    EmulatedNvrtc(broken="no NVRTC").install(monkeypatch, emulated.cupy, tmp_path)
    device = CudaDevice()
    device.warm_up(LINEARS, 10)
    assert {name for name, _ in emulated.cupy.calls if "gemm" in name} == {"gemmEx", "sgemm"}
    assert emulated.cupy.blocks == {}


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
