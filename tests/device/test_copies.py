"""Copies, fetches, events and memory, on every device."""

from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.errors import OutOfDeviceMemoryError
from offload.spec.linear import WeightFormat
from tests.device.support import download, upload


@pytest.fixture
def stream(device: Any) -> Any:
    return device.stream("test")


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


def test_a_fetch_keeps_every_byte(device: Any, stream: Any) -> None:
    """Numbers of bytes that no vector of a kernel divides, from places that are aligned to no more than they are."""
    source = device.allocate_pinned(4096)
    source[:] = np.random.default_rng(4).integers(0, 256, 4096, np.uint8)
    memory = device.allocate(8192)
    for start, stop, offset in ((0, 4096, 0), (256, 1260, 4096), (1024, 1036, 7936)):
        array = DeviceArray(memory, offset, (1, (stop - start) // 4), WeightFormat.FP32)
        stream.fetch(array, source[start:stop])
        assert np.array_equal(download(device, stream, array).reshape(-1).view(np.uint8), source[start:stop])


def test_what_was_fetched_is_there_for_what_comes_after(device: Any, stream: Any) -> None:
    other, event = device.stream("other"), device.event()
    memory = device.allocate(1024)
    array = DeviceArray(memory, 0, (1, 256), WeightFormat.FP32)
    source, result = device.allocate_pinned(1024), device.allocate_pinned(1024)
    for value in range(3):
        source[:] = value
        stream.fetch(array, source)
        stream.record(event)
        other.wait(event)
        other.copy_to_host(result, array)
        other.synchronize()
        assert np.all(result == value)


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
