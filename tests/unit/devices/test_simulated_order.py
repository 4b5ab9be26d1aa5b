"""The happens-before check of the simulated device: what is not ordered by events is an error, whatever the timing."""

import numpy as np
import pytest

from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.happens_before import Access, AccessHistory, StreamOrderError
from offload.devices.simulated.memory import DeviceMisuseError
from tests.device.support import row


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice(memory_bytes=10_000, context_bytes=1_000, workspace_bytes=500)


def test_freeing_what_is_in_use_is_found(device: SimulatedDevice) -> None:
    stream, block = device.stream("s"), device.allocate(64)
    stream.copy_to_device(row(block, 0, 64), device.allocate_pinned(64))
    with pytest.raises(StreamOrderError, match="free of a device allocation of 64 bytes without waiting"):
        device.free(block)
    stream.synchronize()
    device.free(block)


def test_order_is_checked_by_bytes(device: SimulatedDevice) -> None:
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(128)
    pinned = device.allocate_pinned(128)
    one.copy_to_device(row(block, 0, 64), pinned[:64])
    other.copy_to_device(row(block, 64, 128), pinned[64:])  # other bytes: no order needed
    other.copy_to_host(device.allocate_pinned(64), row(block, 64, 128))
    with pytest.raises(StreamOrderError, match=r"reads bytes 60\.\.68 .* without waiting for the copy-in"):
        other.copy_to_host(device.allocate_pinned(8), row(block, 60, 68))


def test_pinned_bytes_are_checked_too(device: SimulatedDevice) -> None:
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(128)
    pinned = device.allocate_pinned(64)
    one.copy_to_device(row(block, 0, 64), pinned)
    with pytest.raises(StreamOrderError, match=r"writes bytes 0\.\.64 of a pinned block"):
        other.copy_to_host(pinned, row(block, 64, 128))


def test_the_source_of_a_fetch_must_stay_as_it_is(device: SimulatedDevice) -> None:
    stream, block, pinned = device.stream("s"), device.allocate(64), device.allocate_pinned(64)
    for value in (1, 2):
        pinned[:] = value
        stream.fetch(row(block, 0, 64), pinned)
        stream.synchronize()
    stream.fetch(row(block, 0, 64), pinned)
    pinned[:] = 3
    with pytest.raises(DeviceMisuseError, match="not pinned"):
        stream.fetch(row(block, 0, 64), np.zeros(64, np.uint8))
    with pytest.raises(StreamOrderError, match="the host wrote to the source of the fetch of 64 bytes on stream 's'"):
        stream.synchronize()


def test_fetches_are_ordered_like_copies(device: SimulatedDevice) -> None:
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(128)
    pinned = device.allocate_pinned(64)
    one.fetch(row(block, 0, 64), pinned)
    with pytest.raises(StreamOrderError, match="without waiting for the fetch"):
        other.copy_to_host(device.allocate_pinned(64), row(block, 0, 64))
    with pytest.raises(StreamOrderError, match=r"writes bytes 0\.\.64 of a pinned block"):
        other.copy_to_host(pinned, row(block, 64, 128))
    other.copy_to_host(device.allocate_pinned(64), row(block, 64, 128))
    with pytest.raises(StreamOrderError, match="the fetch of 64 bytes on stream 'one' writes"):
        one.fetch(row(block, 64, 128), pinned)


def test_a_wait_binds_to_the_record_before_it(device: SimulatedDevice) -> None:
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(64)
    pinned, event = device.allocate_pinned(64), device.event()
    one.record(event)
    other.wait(event)
    one.copy_to_device(row(block, 0, 64), pinned)
    one.record(event)  # too late for the wait above
    with pytest.raises(StreamOrderError):
        other.copy_to_host(device.allocate_pinned(64), row(block, 0, 64))
    other.wait(event)
    other.copy_to_host(device.allocate_pinned(64), row(block, 0, 64))


def test_a_record_does_not_cover_later_work(device: SimulatedDevice) -> None:
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(64)
    pinned, event = device.allocate_pinned(64), device.event()
    one.record(event)
    one.copy_to_device(row(block, 0, 64), pinned)
    other.wait(event)
    with pytest.raises(StreamOrderError):
        other.copy_to_host(device.allocate_pinned(64), row(block, 0, 64))


def test_order_passes_through_the_host_and_other_streams(device: SimulatedDevice) -> None:
    streams = [device.stream(name) for name in "abc"]
    block, pinned, event = device.allocate(64), device.allocate_pinned(64), device.event()
    streams[0].copy_to_device(row(block, 0, 64), pinned)
    for first, second in ((0, 1), (1, 2)):
        streams[first].record(event)
        streams[second].wait(event)
    streams[2].copy_to_device(row(block, 0, 64), pinned)
    streams[2].synchronize()
    streams[1].copy_to_device(row(block, 0, 64), pinned)


def test_history_keeps_the_parts_that_were_not_overwritten() -> None:
    history = AccessHistory("a block")
    history.add(Access(0, 100, actor=1, number=1, writes=True, what="first"), {1: 1})
    history.add(Access(40, 60, actor=1, number=2, writes=True, what="second"), {1: 2})
    knows_first = {1: 1}
    for start, stop in ((0, 40), (60, 100)):
        history.add(Access(start, stop, actor=2, number=1, writes=False, what="read"), knows_first)
    with pytest.raises(StreamOrderError, match="second"):
        history.add(Access(39, 41, actor=3, number=1, writes=False, what="read"), knows_first)


def test_history_still_checks_the_parts_that_were_not_overwritten() -> None:
    for start, stop in ((30, 40), (60, 70)):
        history = AccessHistory("a block")
        history.add(Access(0, 100, actor=1, number=1, writes=True, what="first"), {1: 1})
        history.add(Access(40, 60, actor=1, number=2, writes=True, what="second"), {1: 2})
        with pytest.raises(StreamOrderError, match="first"):
            history.add(Access(start, stop, actor=2, number=1, writes=False, what="read"), {})
