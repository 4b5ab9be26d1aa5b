"""Copies and GEMM, on every device."""

from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.errors import OutOfDeviceMemoryError
from offload.specs import Layout, WeightFormat
from tests.device.support import GEMM_TOLERANCE, download, random_stored, to_float64, upload

FLOATS = [WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16]


@pytest.fixture
def stream(device: Any) -> Any:
    return device.stream("test")


@pytest.mark.parametrize("weight_format", FLOATS)
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("shape", [(1, 64, 48), (3, 33, 17), (17, 128, 256)])  # M, K, N
def test_gemm_matches_float64(
    device: Any, stream: Any, weight_format: WeightFormat, layout: Layout, shape: tuple[int, int, int]
) -> None:
    if reason := device.supports(weight_format):
        pytest.skip(reason)
    rows, inner, columns = shape
    rng = np.random.default_rng(1)
    x = random_stored(rng, (rows, inner), weight_format)
    w = random_stored(rng, (inner, columns) if layout is Layout.KN else (columns, inner), weight_format)
    memory = device.allocate(1 << 20)
    x_array = upload(device, stream, memory, 256, x, weight_format)
    w_array = upload(device, stream, memory, 64 << 10, w, weight_format)
    y_array = DeviceArray(memory, 512 << 10, (rows, columns), WeightFormat.FP32)
    stream.gemm(x_array, w_array, y_array, layout)
    y = download(device, stream, y_array)

    wide = to_float64(w, weight_format)
    expected = to_float64(x, weight_format) @ (wide if layout is Layout.KN else wide.T)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=GEMM_TOLERANCE, atol=GEMM_TOLERANCE * np.sqrt(inner))
    device.free(memory)


@pytest.mark.parametrize("weight_format", FLOATS)
def test_gemm_on_some_columns(device: Any, stream: Any, weight_format: WeightFormat) -> None:
    """Columns [5, 21) of a matrix that is stored NK are its rows: an offset is all it takes."""
    if reason := device.supports(weight_format):
        pytest.skip(reason)
    rng = np.random.default_rng(2)
    x, w = random_stored(rng, (4, 40), weight_format), random_stored(rng, (32, 40), weight_format)
    memory = device.allocate(1 << 16)
    x_array = upload(device, stream, memory, 0, x, weight_format)
    whole = upload(device, stream, memory, 1 << 12, w, weight_format)
    offset = whole.offset_bytes + 5 * 40 * weight_format.itemsize_bytes
    part = DeviceArray(memory, offset, (16, 40), weight_format)
    y_array = DeviceArray(memory, 1 << 15, (4, 16), WeightFormat.FP32)
    stream.gemm(x_array, part, y_array, Layout.NK)
    expected = to_float64(x, weight_format) @ to_float64(w, weight_format)[5:21].T
    y = download(device, stream, y_array)
    np.testing.assert_allclose(y, expected, rtol=GEMM_TOLERANCE, atol=1e-4)


def test_copies_keep_every_byte(device: Any, stream: Any) -> None:
    data = np.random.default_rng(3).integers(0, 256, (10, 40), np.uint8).view(np.uint16)
    memory = device.allocate(4096)
    array = upload(device, stream, memory, 256, data, WeightFormat.BF16)
    assert np.array_equal(download(device, stream, array), data)


def test_copies_take_rows_that_lie_apart(device: Any, stream: Any) -> None:
    data = np.random.default_rng(3).integers(0, 256, (10, 40), np.uint8).view(np.uint16)
    pinned = device.allocate_pinned(800).view(np.uint16).reshape(10, 40)
    pinned[:, 7:27] = data
    array = DeviceArray(device.allocate(4096), 256, (10, 20), WeightFormat.BF16)
    stream.copy_to_device(array, pinned[:, 7:27])
    stream.synchronize()
    assert np.array_equal(download(device, stream, array), data)


def test_memory_of_ours_can_be_pinned_and_copied_from(device: Any, stream: Any) -> None:
    block = np.arange(1 << 16, dtype=np.uint16)
    array = DeviceArray(device.allocate(1 << 17), 0, (128, 512), WeightFormat.BF16)
    for _ in range(2):  # pinning can be undone and done again
        device.pin(block.view(np.uint8))
        stream.copy_to_device(array, block)
        stream.synchronize()
        device.unpin(block.view(np.uint8))
    assert np.array_equal(download(device, stream, array).reshape(-1), block)


def test_events_order_two_streams(device: Any, stream: Any) -> None:
    other = device.stream("other")
    memory = device.allocate(1024)
    array = DeviceArray(memory, 0, (1, 256), WeightFormat.FP32)
    source, result = device.allocate_pinned(1024), device.allocate_pinned(1024)
    event = device.event()
    for value in range(3):
        source[:] = value
        stream.copy_to_device(array, source)
        stream.record(event)
        other.wait(event)
        other.copy_to_host(result, array)
        other.record(event)
        stream.wait(event)
        event.synchronize()
        assert np.all(result == value)


def test_out_of_device_memory(device: Any) -> None:
    free_bytes = device.memory().free_bytes
    with pytest.raises(OutOfDeviceMemoryError) as error:
        device.allocate(free_bytes + (1 << 30))
    assert error.value.asked_bytes == free_bytes + (1 << 30)
    assert error.value.limit_bytes == device.memory().total_bytes
    assert error.value.used_bytes <= error.value.limit_bytes


def test_freed_memory_can_be_used_again(device: Any) -> None:
    before = device.memory().free_bytes
    block = device.allocate(8 << 20)
    assert block.nbytes == 8 << 20
    assert device.memory().free_bytes <= before - (8 << 20)
    device.free(block)
    assert device.memory().free_bytes == before


def test_fixed_memory_is_by_name(device: Any) -> None:
    assert set(device.fixed_bytes) == {"context", "workspace"}


def test_trace_has_a_track_for_each_stream(device: Any, stream: Any) -> None:
    memory = device.allocate(4096)
    x = upload(device, stream, memory, 0, np.ones((1, 8), np.float32), WeightFormat.FP32)
    device.start_trace()
    stream.copy_to_host(device.allocate_pinned(x.nbytes), x)
    spans = device.take_trace()
    assert [span.name for span in spans] == ["copy-out 32 B"]
    assert spans[0].track == ("modelled test" if device.simulated else "test")
    assert spans[0].start_s >= 0
    assert spans[0].duration_s > 0
    stream.copy_to_host(device.allocate_pinned(x.nbytes), x)
    assert device.take_trace() == []
