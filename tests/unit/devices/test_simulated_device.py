"""The simulated device: its strictness, and its clock."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray, DeviceBlocks
from offload.devices.simulated.clock import VirtualClock
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.happens_before import StreamOrderError
from offload.devices.simulated.memory import DeviceMisuseError
from offload.devices.simulated.multiply import rounded_to_int8
from offload.devices.simulated.rates import SimulatedRates, same_rate
from offload.errors import OutOfDeviceMemoryError
from offload.machine.profile import GpuRates
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from tests.device.support import download, multiply, row, to_float64, to_stored, upload

FP32, INT8 = WeightFormat.FP32, WeightFormat.INT8


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice(memory_bytes=10_000, context_bytes=1_000, workspace_bytes=500)


def test_memory_is_capped(device: SimulatedDevice) -> None:
    assert device.memory().free_bytes == 8_500
    block = device.allocate(8_000)
    with pytest.raises(OutOfDeviceMemoryError, match="asked for 501 bytes with 9500 in use of 10000"):
        device.allocate(501)
    device.allocate(500)
    device.free(block)
    device.allocate(8_000)


def test_fresh_memory_is_nan(device: SimulatedDevice) -> None:
    stream = device.stream("s")
    pinned = device.allocate_pinned(64)
    assert np.all(np.isnan(pinned.view(np.float16)))
    pinned[:] = 0
    stream.copy_to_host(pinned, row(device.allocate(64), 0, 64))
    stream.synchronize()
    assert np.all(np.isnan(pinned.view(np.float32)))


def test_misuse_is_refused(device: SimulatedDevice) -> None:
    stream = device.stream("s")
    block, pinned = device.allocate(256), device.allocate_pinned(256)
    with pytest.raises(DeviceMisuseError, match=r"bytes 128\.\.384 of a block of 256"):
        stream.copy_to_device(row(block, 128, 384), pinned)
    with pytest.raises(DeviceMisuseError, match="not pinned"):
        stream.copy_to_device(row(block, 0, 256), np.zeros(256, np.uint8))
    with pytest.raises(DeviceMisuseError, match="contiguous"):
        stream.copy_to_device(row(block, 0, 128), pinned[::2])
    with pytest.raises(DeviceMisuseError, match="256 device bytes and 128 host bytes"):
        stream.copy_to_host(pinned[:128], row(block, 0, 256))
    with pytest.raises(DeviceMisuseError, match="128 device bytes and 256 host bytes"):
        stream.fetch(row(block, 0, 128), pinned)
    with pytest.raises(DeviceMisuseError, match="contiguous"):
        stream.fetch(row(block, 0, 128), pinned.reshape(16, 16)[:, :8])
    device.free(block)
    with pytest.raises(DeviceMisuseError, match="freed"):
        stream.copy_to_device(row(block, 0, 256), pinned)
    with pytest.raises(DeviceMisuseError, match="freed twice"):
        device.free(block)


def test_operands_that_do_not_fit_are_refused(device: SimulatedDevice) -> None:
    stream, block = device.stream("s"), device.allocate(1024)
    x, y, nothing = row(block, 0, 64), DeviceArray(block, 64, (1, 1), FP32), DeviceArray(block, 0, (1, 0), INT8)
    half = DeviceArray(block, 128, (1, 16), WeightFormat.FP16)
    blocks = DeviceBlocks(block, 128, 1, 16, BlockFormat(8, 16, FP32))
    few, enough = DeviceArray(block, 256, (1, 511), INT8), DeviceArray(block, 256, (1, 512), INT8)
    with pytest.raises(
        DeviceMisuseError, match=r"multiply of x \(1, 16\) fp32, w \(1, 16\) fp32 KN and y \(1, 1\) fp32"
    ):
        stream.multiply(x, x, y, Layout.KN, nothing)
    with pytest.raises(DeviceMisuseError, match="x has to be fp32"):
        stream.multiply(half, half, y, Layout.NK, nothing)
    with pytest.raises(DeviceMisuseError, match=r"w \(1, 16\) int8 KN"):
        stream.multiply(x, blocks, y, Layout.KN, enough)
    with pytest.raises(DeviceMisuseError, match="511 bytes of scratch, not 512"):
        stream.multiply(x, blocks, y, Layout.NK, few)
    with pytest.raises(DeviceMisuseError, match="bytes"):
        stream.multiply(x, blocks, y, Layout.NK, replace(enough, offset_bytes=513))
    stream.multiply(x, blocks, y, Layout.NK, enough)
    stream.synchronize()
    device.free(block)
    with pytest.raises(DeviceMisuseError, match="freed"):
        stream.multiply(x, x, y, Layout.NK, nothing)


@pytest.mark.parametrize("weight_format", [WeightFormat.FP16, WeightFormat.BF16])
def test_many_rows_are_rounded_as_the_weights_are(device: SimulatedDevice, weight_format: WeightFormat) -> None:
    """1 + 2**-12 needs 12 bits of mantissa, fp16 has 10; the row of NaN stays that in bf16 too."""
    stream, block = device.stream("s"), device.allocate(256)
    w = upload(device, stream, block, 0, to_stored(np.eye(4), weight_format), weight_format)
    x = np.full((9, 4), 1 + 2**-12, np.float32)
    x.view(np.uint32)[8] = 0xFFFFFFFF
    assert np.all(multiply(device, stream, x[:8], w) == np.float32(1 + 2**-12))
    y = multiply(device, stream, x, w)
    assert np.all(y[:8] == 1)
    assert np.all(np.isnan(y[8]))


def test_halfway_values_are_rounded_to_even_in_bf16(device: SimulatedDevice) -> None:
    values = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, 3e38, 3.4e38, np.inf, -0.0, 1e-40, 0.3]
    x = np.array(values, np.float32)[:, None]
    stream = device.stream("s")
    one = upload(device, stream, device.allocate(256), 0, to_stored([[1]], WeightFormat.BF16), WeightFormat.BF16)
    expected = to_float64(to_stored(x, WeightFormat.BF16), WeightFormat.BF16)
    assert list(expected[:3, 0]) == [1, 1 + 2**-6, -1 - 2**-7]
    assert np.array_equal(multiply(device, stream, x, one), expected)


def test_tiny_activations_are_rounded_to_no_nan() -> None:
    """A block whose scale is so small that its inverse is infinite, with zeros in it; and a block of zeros."""
    x = np.zeros((1, 32), np.float32)
    x[0, 3] = 1e-39
    with np.errstate(all="ignore"):
        assert np.all(np.abs(rounded_to_int8(x, 16)) < 1e-37)


def test_scratch_memory_is_poisoned_and_scales_that_never_came_are_nan(device: SimulatedDevice) -> None:
    stream, block = device.stream("s"), device.allocate(1024)
    weight = DeviceBlocks(block, 256, 2, 16, BlockFormat(4, 16, WeightFormat.FP16))
    x = upload(device, stream, block, 0, np.ones((1, 16), np.float32), FP32)
    scratch = upload(device, stream, block, 512, np.zeros((1, 512), np.uint8), INT8)
    numbers_alone = np.full((2, 8), 0x99, np.uint8)
    upload(device, stream, block, 256, numbers_alone, INT8)
    y = DeviceArray(block, 64, (1, 2), FP32)
    stream.multiply(x, weight, y, Layout.NK, scratch)
    assert np.all(np.isnan(download(device, stream, y)))
    assert np.all(download(device, stream, scratch) == 0xFF)
    upload(device, stream, block, 256 + 16, np.ones((2, 1), np.float16), WeightFormat.FP16)
    stream.multiply(x, weight, y, Layout.NK, scratch)
    assert np.all(download(device, stream, y) == 16)


def test_two_streams_may_not_share_scratch_memory(device: SimulatedDevice) -> None:
    streams, block, event = [device.stream("one"), device.stream("two")], device.allocate(4096), device.event()
    weight = DeviceBlocks(block, 0, 1, 16, BlockFormat(4, 16, FP32))
    scratch = DeviceArray(block, 512, (1, 512), INT8)
    operands = [(row(block, at, at + 64), weight, DeviceArray(block, at + 64, (1, 1), FP32)) for at in (1024, 2048)]
    streams[0].multiply(*operands[0], Layout.NK, scratch)
    with pytest.raises(StreamOrderError, match=r"'two' writes bytes 512\.\.1024 .* without waiting for gemm 1x16x1"):
        streams[1].multiply(*operands[1], Layout.NK, scratch)
    streams[0].record(event)
    streams[1].wait(event)
    streams[1].multiply(*operands[1], Layout.NK, scratch)


def test_without_kernels_a_library_multiplies_what_is_stored_alike() -> None:
    device = SimulatedDevice(10_000, own_kernels=False)
    assert "int4" in device.supports(WeightFormat.INT4)
    assert [device.supports(form) for form in (FP32, WeightFormat.FP16, WeightFormat.BF16)] == ["", "", ""]
    assert device.input_format(WeightFormat.BF16) is WeightFormat.BF16
    stream, block = device.stream("s"), device.allocate(1024)
    x = DeviceArray(block, 0, (1, 16), WeightFormat.FP16)
    with pytest.raises(DeviceMisuseError, match="x has to be fp16"):
        stream.multiply(row(block, 0, 64), x, DeviceArray(block, 64, (1, 1), FP32), Layout.NK, x)


def test_pinned_memory_lives_as_long_as_its_views(device: SimulatedDevice) -> None:
    pinned = device.allocate_pinned(64)
    view = pinned[:16].view(np.float32)
    del pinned
    device.stream("s").copy_to_device(row(device.allocate(64), 0, 16), view)


def test_registered_memory_is_checked_like_pinned(device: SimulatedDevice) -> None:
    stream, block, own = device.stream("s"), device.allocate(64), np.zeros(8192, np.uint8)
    device.pin(own)
    with pytest.raises(DeviceMisuseError, match="pinned already"):
        device.pin(own[8000:])
    with pytest.raises(DeviceMisuseError, match="only contiguous"):
        device.pin(own.reshape(64, 128)[:, :64])
    stream.copy_to_device(row(block, 0, 64), own[:64])
    with pytest.raises(StreamOrderError, match="unpinning of a registered block of 8192 bytes without waiting"):
        device.unpin(own)
    stream.synchronize()
    device.unpin(own)
    with pytest.raises(DeviceMisuseError, match="not pinned"):
        stream.copy_to_device(row(block, 0, 64), own[:64])


def test_effects_come_in_order_of_finish_times() -> None:
    """Work that starts during a wait and finishes before it has its effect first."""
    clock, done = VirtualClock(), list[str]()
    gemm = clock.queue("a", "gemm", "compute", 10, lambda: done.append("gemm"), ())
    first = clock.queue("b", "first", "copy-in", 6, lambda: done.append("first"), ())
    second = clock.queue("b", "second", "copy-in", 1, lambda: done.append("second"), (first,))
    clock.queue("b", "third", "copy-in", 5, lambda: done.append("third"), (second,))
    clock.wait_for([gemm])
    assert (done, clock.now_s) == (["first", "second", "gemm"], 10)
    clock.finish()
    assert (done[3:], clock.now_s) == (["third"], 12)


def test_engines_work_side_by_side_and_each_in_turn() -> None:
    """Copies of 1000 bytes at 1000 bytes/s take 1 s; one engine each way."""
    rates = SimulatedRates(copy_bytes_per_s=1000, copy_back_bytes_per_s=1000, copy_latency_s=0, launch_s=0)
    device = SimulatedDevice(1 << 20, rates=rates)
    device.start_trace()
    block = device.allocate(4000)
    copies = [device.stream(name) for name in ("in 1", "in 2", "out")]
    for number, stream in enumerate(copies[:2]):
        stream.copy_to_device(row(block, number * 1000, number * 1000 + 1000), device.allocate_pinned(1000))
    copies[2].copy_to_host(device.allocate_pinned(1000), row(block, 2000, 3000))
    spans = {span.track: (span.start_s, span.duration_s) for span in device.take_trace()}
    assert spans == {"modelled in 1": (0, 1), "modelled in 2": (1, 1), "modelled out": (0, 1)}


def test_an_engine_takes_what_is_ready_first() -> None:
    """A copy that has to wait does not hold up one that need not, though it was queued earlier."""
    rates = SimulatedRates(copy_bytes_per_s=1000, copy_back_bytes_per_s=1000, copy_latency_s=0, launch_s=0)
    device = SimulatedDevice(1 << 20, rates=rates)
    block, event = device.allocate(4000), device.event()
    waiting, out, ready = device.stream("waiting"), device.stream("out"), device.stream("ready")
    device.start_trace()
    out.copy_to_host(device.allocate_pinned(1000), row(block, 0, 1000))
    out.record(event)
    waiting.wait(event)
    waiting.copy_to_device(row(block, 0, 1000), device.allocate_pinned(1000))
    ready.copy_to_device(row(block, 2000, 2500), device.allocate_pinned(500))
    starts = {span.track: span.start_s for span in device.take_trace()}
    assert starts == {"modelled out": 0, "modelled ready": 0, "modelled waiting": 1}


@pytest.mark.parametrize(("own_kernels", "start_s"), [(True, 0), (False, 1)])
def test_a_fetch_waits_for_no_copy(own_kernels: bool, start_s: float) -> None:
    """Beside a copy of 1 s; only where no kernel can do it, a fetch is a copy and takes its turn."""
    rates = SimulatedRates(copy_bytes_per_s=1000, copy_latency_s=0)
    device = SimulatedDevice(1 << 20, rates=rates, own_kernels=own_kernels)
    block = device.allocate(4000)
    device.start_trace()
    device.stream("weights").copy_to_device(row(block, 0, 1000), device.allocate_pinned(1000))
    device.stream("compute").fetch(row(block, 1000, 1500), device.allocate_pinned(500))
    fetched = device.take_trace()[1]
    assert (fetched.name, fetched.start_s, fetched.duration_s) == ("copy-in 500 B", start_s, 0.5)


def test_streams_go_on_while_the_host_works() -> None:
    """The host works for 1.5 s of two copies of 1 s each, waits for both, and takes 0.25 s to notice."""
    device = SimulatedDevice(1 << 20, rates=SimulatedRates(1000, 1000, copy_latency_s=0, wait_s=0.25))
    stream, block, target = device.stream("s"), device.allocate(2000), device.allocate_pinned(1000)
    device.start_trace()
    for _ in range(2):
        stream.copy_to_host(target, row(block, 0, 1000))
    device.spend(1.5, "host columns")
    stream.synchronize()
    assert device.now_s == 2.25
    everything = (*device.take_trace(), *device.host_spans)
    spans = [(span.track, span.name, span.start_s, span.duration_s) for span in everything]
    assert spans == [
        ("modelled s", "copy-out 1000 B", 0, 1),
        ("modelled s", "copy-out 1000 B", 1, 1),
        ("modelled host", "host columns", 0, 1.5),
        ("modelled host", "wait", 1.5, 0.75),
    ]


def test_a_hollow_device_checks_order_and_bounds_and_moves_nothing() -> None:
    device = SimulatedDevice(1 << 50, hollow=True)
    one, other, block = device.stream("one"), device.stream("other"), device.allocate(1 << 49)
    pinned = device.allocate_pinned(64)
    pinned[:] = 7
    one.copy_to_host(pinned, row(block, 0, 64))
    with pytest.raises(StreamOrderError, match="without waiting"):
        other.copy_to_device(row(block, 0, 64), pinned)
    one.synchronize()
    assert np.all(pinned == 7)
    with pytest.raises(DeviceMisuseError, match="bytes"):
        one.copy_to_host(pinned, row(block, (1 << 49) - 32, (1 << 49) + 32))
    with pytest.raises(DeviceMisuseError, match="not pinned"):
        one.copy_to_host(np.zeros(64, np.uint8), row(block, 0, 64))
    one.fetch(row(block, 0, 64), pinned)
    x, y, scratch = row(block, 0, 64), DeviceArray(block, 64, (1, 2), FP32), DeviceArray(block, 1024, (1, 512), INT8)
    with pytest.raises(DeviceMisuseError, match="multiply of x"):
        one.multiply(x, x, y, Layout.KN, scratch)
    one.multiply(x, DeviceBlocks(block, 256, 2, 16, BlockFormat(8, 16, FP32)), y, Layout.NK, scratch)
    one.synchronize()
    device.free(block)
    with pytest.raises(DeviceMisuseError, match="freed"):
        one.copy_to_host(pinned, row(block, 0, 64))


def test_rates_of_a_profile_split_a_round_trip() -> None:
    gpu = GpuRates("a GPU", 1, 2e9, same_rate(3e12), 4e9, 5e9, 6e9, 1e-5, 5e-5, 8e-6, 0, 0)
    rates = SimulatedRates.of(gpu)
    assert rates.copy_s(0) + rates.copy_back_s(0) + rates.wait_s == pytest.approx(gpu.round_trip_s)
    assert (rates.copy_s(4000), rates.copy_back_s(5000)) == pytest.approx((1.1e-5, 1.1e-5))
    assert rates.multiply_s(FP32, 500, 1, 1) == pytest.approx(9e-6)
    assert rates.multiply_s(WeightFormat.FP16, 1000, 1000, 1500) == pytest.approx(1.008e-3)


def test_many_rows_of_weights_in_blocks_wait_for_a_panel() -> None:
    """1e6 numbers of 1 byte, with scales of 0.125 bytes, at 1 GB/s: 1.125 ms; a panel of fp16: 2 ms each way."""
    blocks = BlockFormat(8, 16, WeightFormat.FP16)
    rates = SimulatedRates(vram_bytes_per_s=1e9, flops_per_s=same_rate(4e9), launch_s=0.1)
    for stored, rows, expected_s in (
        (blocks, 1, 0.1 + 1.125e-3),
        (blocks, 8, 0.1 + 4e-3),
        (blocks, 9, 0.2 + 1.125e-3 + 2e-3 + 4.5e-3),
        (WeightFormat.FP16, 9, 0.1 + 4.5e-3),
    ):
        assert rates.multiply_s(stored, 625, 1600, rows) == pytest.approx(expected_s)


def test_runs_are_deterministic() -> None:
    def trace() -> list[Any]:
        device = SimulatedDevice(1 << 20)
        device.start_trace()
        block = device.allocate(4096)
        for number in range(8):
            stream = device.stream(str(number))
            part = row(block, number * 256, number * 256 + 256)
            stream.copy_to_device(part, device.allocate_pinned(256))
        return device.take_trace()

    assert trace() == trace()
