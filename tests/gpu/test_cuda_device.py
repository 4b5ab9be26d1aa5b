"""True memory and true asynchrony, which only a GPU can show. The suite in tests/device runs on it as well."""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceUnavailableError, OutOfDeviceMemoryError
from offload.plan.packing import resident_bytes, working_memory
from offload.run.runner import LinearRunner
from offload.spec.linear import Layout, WeightFormat
from tests.device.support import NumpyHost, as_stored, linear, make_plan, place, random_stored, to_float64

pytestmark = pytest.mark.gpu

MIB = 2**20


@pytest.fixture
def cuda() -> Iterator[CudaDevice]:
    try:
        device = CudaDevice()
    except DeviceUnavailableError as error:
        pytest.skip(str(error))
    yield device
    device.close()


def test_fixed_costs_are_plausible(cuda: CudaDevice) -> None:
    """The context is only seen by the first device of a process, so only bounds are checked."""
    assert 0 <= cuda.fixed_bytes["context"] < 4096 * MIB
    assert 0 <= cuda.fixed_bytes["workspace"] < 1024 * MIB


def test_fp32_and_fp16_always_work(cuda: CudaDevice) -> None:
    assert cuda.supports(WeightFormat.FP32) == ""
    assert cuda.supports(WeightFormat.FP16) == ""


def test_a_slab_takes_what_was_asked_for(cuda: CudaDevice) -> None:
    before = cuda.memory().free_bytes
    slab = cuda.allocate(256 * MIB)
    taken = before - cuda.memory().free_bytes
    assert 256 * MIB <= taken <= 260 * MIB
    cuda.free(slab)


def test_out_of_memory_leaves_the_device_usable(cuda: CudaDevice) -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        cuda.allocate(cuda.memory().total_bytes * 2)
    cuda.free(cuda.allocate(MIB))


def test_pinned_copies_do_not_block_the_host(cuda: CudaDevice) -> None:
    """Queueing 16 copies of 64 MiB takes a small part of the time that they take."""
    block, pinned = cuda.allocate(64 * MIB), cuda.allocate_pinned(64 * MIB)
    array = DeviceArray(block, 0, (1, 16 * MIB), WeightFormat.FP32)
    stream = cuda.stream("copies")
    stream.copy_to_device(array, pinned)
    stream.synchronize()
    start_s = perf_counter()
    for _ in range(16):
        stream.copy_to_device(array, pinned)
    queued_s = perf_counter() - start_s
    stream.synchronize()
    assert queued_s < 0.5 * (perf_counter() - start_s)


def test_fp32_is_not_rounded_to_tf32(cuda: CudaDevice) -> None:
    """1 + 2**-12 needs 12 bits of mantissa; TF32 has 10."""
    stream, block, pinned = cuda.stream("s"), cuda.allocate(MIB), cuda.allocate_pinned(MIB)
    values = pinned.view(np.float32)
    values[: 64 * 64] = 0
    values[: 64 * 64].reshape(64, 64)[np.diag_indices(64)] = 1 + 2**-12
    matrix = DeviceArray(block, 0, (64, 64), WeightFormat.FP32)
    y = DeviceArray(block, 64 * 1024, (64, 64), WeightFormat.FP32)
    stream.copy_to_device(matrix, pinned[: matrix.nbytes])
    stream.multiply(matrix, matrix, y, Layout.NK, DeviceArray(block, 0, (1, 0), WeightFormat.INT8))
    out = pinned[64 * 1024 : 64 * 1024 + y.nbytes]
    stream.copy_to_host(out, y)
    stream.synchronize()
    assert out.view(np.float32)[0] == np.float32((1 + 2**-12) ** 2)


@pytest.mark.parametrize("layout", list(Layout))
def test_streaming_under_load(cuda: CudaDevice, layout: Layout) -> None:
    """8 Linears of 32 MiB through two small slots, 20 steps: a slot reused too early would show."""
    specs = [linear(f"l{i}", f"l{i}", 2048, 8192, WeightFormat.FP16, layout) for i in range(8)]
    rng = np.random.default_rng(0)
    weights = {
        spec.name: as_stored(spec, random_stored(rng, (2048, 8192)[:: 1 if layout is Layout.KN else -1], spec.format))
        for spec in specs
    }
    placements = [place(spec, 0.25, 0.75) for spec in specs]
    slot_bytes = 8 * MIB
    plan = make_plan(placements, chunk_tokens=16, slots=2, slot_bytes=slot_bytes)
    before = cuda.memory().free_bytes
    runner = LinearRunner([[spec.name] for spec in specs], plan, weights, cuda, NumpyHost())
    planned = resident_bytes(placements) + working_memory(placements, 16).device_bytes + 2 * slot_bytes
    assert before - cuda.memory().free_bytes <= planned + 8 * MIB  # the driver rounds blocks up
    x = rng.standard_normal((3, 2048)).astype(np.float16).astype(np.float32)
    expected = {}
    for spec in specs:
        weight = to_float64(weights[spec.name].arrays[0].array(), spec.format)
        expected[spec.name] = x @ (weight if layout is Layout.KN else weight.T)
    for _ in range(20):
        for level, spec in enumerate(specs):
            y = np.full((3, 8192), np.nan, np.float32)
            runner.run(level, {spec.group: x}, {spec.name: y})
            np.testing.assert_allclose(y, expected[spec.name], atol=1e-2, rtol=1e-4)
    runner.close()
