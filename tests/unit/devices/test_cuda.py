"""CudaDevice without a GPU: what it says when there is none, and the calls it makes."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.devices.cuda import nvml
from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceLostError, DeviceUnavailableError, OutOfDeviceMemoryError, OverBudgetError
from offload.spec.linear import Layout, WeightFormat
from tests.device.emulated_cupy import EmulatedCupy
from tests.fake_nvml import FakeNvml, NVMLError


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCupy:
    emulation = EmulatedCupy()
    emulation.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device._context_bytes", {})
    return emulation


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_says_how_to_install_cupy_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "driver", lambda: nvml.Driver("580.65", (13, 0), ()))
    with pytest.raises(DeviceUnavailableError, match=r"pip install 'hybrid-run\[cu12\]'"):
        CudaDevice()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_a_driver_cupy_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> nvml.Driver:
        raise DeviceUnavailableError("no NVIDIA driver found")

    monkeypatch.setattr(nvml, "driver", no_driver)
    with pytest.raises(DeviceUnavailableError, match=r"^no NVIDIA driver found$"):
        CudaDevice()


def test_says_why_cupy_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise ImportError("libcuda\n\n   is odd")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceUnavailableError, match="CuPy cannot be imported: libcuda is odd"):
        CudaDevice()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"driver": 0}, "no NVIDIA driver"),
        ({"driver": 11_080}, r"serves CUDA 11\.8 and CuPy was built for CUDA 12\.9; update the driver$"),
        ({"driver": 12_020, "runtime": 13_020}, r"built for CUDA 13\.2; .* 'hybrid-run\[cu12\]'"),
        ({"devices": 0}, "no CUDA device is visible"),
    ],
)
def test_says_what_is_missing(settings: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    EmulatedCupy(**settings).install(monkeypatch)
    with pytest.raises(DeviceUnavailableError, match=message) as error:
        CudaDevice()
    assert "\n" not in str(error.value)


def test_an_older_minor_version_of_the_driver_will_do(emulated: EmulatedCupy) -> None:
    assert emulated.driver < emulated.built_for
    assert CudaDevice().name == "Emulated GPU"


def test_says_which_devices_there_are(emulated: EmulatedCupy) -> None:
    with pytest.raises(DeviceUnavailableError, match=r"no CUDA device 1: only CUDA device 0 is visible \(see CUDA_"):
        CudaDevice(1)
    emulated.devices = 3
    with pytest.raises(DeviceUnavailableError, match="no CUDA device 7: CUDA devices 0 to 2 are visible"):
        CudaDevice(7)


def test_every_question_is_about_the_device_that_was_asked_for(emulated: EmulatedCupy) -> None:
    emulated.devices = 3
    CudaDevice(2)
    assert emulated.asked_of == {2}


def test_every_thread_asks_the_same_device(emulated: EmulatedCupy) -> None:
    emulated.devices = 3
    device, other = CudaDevice(2), CudaDevice(1)
    emulated.asked_of.clear()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(use_everything, device).result()
    use_everything(device)
    assert emulated.asked_of == {2}
    other.close()


def test_says_that_cublas_is_missing(emulated: EmulatedCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when there is one of another CUDA, which CuPy leaves alone."""
    monkeypatch.delattr(sys.modules["cupy_backends.cuda.libs"], "cublas")
    emulated.driver = emulated.built_for = 13_020
    with pytest.raises(DeviceUnavailableError, match=r"cuBLAS library of CUDA 13 cannot .*'cupy-cuda13x\[ctk\]'"):
        CudaDevice()


def test_formats_are_tried(emulated: EmulatedCupy) -> None:
    assert [CudaDevice().supports(form) for form in WeightFormat if form.is_float] == ["", "", ""]
    emulated.refused_types = {14}
    device = CudaDevice()
    assert device.supports(WeightFormat.FP16) == ""
    assert device.supports(WeightFormat.BF16) == "cuBLAS refuses bf16 on Emulated GPU: CUBLAS_STATUS 15"


@pytest.mark.parametrize(("major", "widens"), [(7, True), (8, False), (12, False)])
def test_bf16_is_widened_where_its_gemm_has_no_tensor_cores(emulated: EmulatedCupy, major: int, widens: bool) -> None:
    emulated.properties["major"] = major
    assert CudaDevice().bf16_as_fp32 == widens


def test_wrong_values_are_noticed(emulated: EmulatedCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_bit(*arguments: Any) -> None:
        emulated.gemmEx(*arguments)
        *_, address = (c for name, c in emulated.calls if name == "gemmEx")
        emulated._column_major(address[9], np.dtype(np.float32), 1, 1, 1)[:] += 1

    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"].cublas, "gemmEx", off_by_a_bit)
    device = CudaDevice()
    assert device.supports(WeightFormat.FP32) == ""
    assert device.supports(WeightFormat.BF16) == "cuBLAS gives wrong values for bf16 on Emulated GPU"


@pytest.mark.parametrize("weight_format", [WeightFormat.FP16, WeightFormat.FP32])
def test_gemm_arguments(emulated: EmulatedCupy, weight_format: WeightFormat) -> None:
    """M=2, K=3, N=5; the arguments are ta, tb, m, n, k, A, lda, B, ldb, C, ldc."""
    device = CudaDevice()
    stream, block = device.stream("s"), device.allocate(4096)
    x = DeviceArray(block, 256, (2, 3), weight_format)
    y = DeviceArray(block, 512, (2, 5), WeightFormat.FP32)
    at = block.address
    name = "sgemm" if weight_format is WeightFormat.FP32 else "gemmEx"
    stream.gemm(x, DeviceArray(block, 1024, (3, 5), weight_format), y, Layout.KN)
    assert emulated.calls[-1] == (name, (0, 0, 5, 2, 3, at + 1024, 5, at + 256, 3, at + 512, 5))
    stream.gemm(x, DeviceArray(block, 2048, (5, 3), weight_format), y, Layout.NK)
    assert emulated.calls[-1] == (name, (1, 0, 5, 2, 3, at + 2048, 3, at + 256, 3, at + 512, 5))


def test_copy_arguments(emulated: EmulatedCupy) -> None:
    """Rows that lie apart: 3 rows of 4 fp16, every 10; dst, pitch, src, pitch, width, height, kind, stream."""
    device = CudaDevice()
    stream, block = device.stream("s"), device.allocate(4096)
    host = device.allocate_pinned(60).view(np.uint16).reshape(3, 10)
    array, at = DeviceArray(block, 256, (3, 4), WeightFormat.FP16), block.address + 256
    stream.copy_to_device(array, host[:, 5:9])
    expected = (at, 8, host.ctypes.data + 10, 20, 8, 3, 1, stream._address)
    assert emulated.calls[-1] == ("memcpy2DAsync", expected)
    whole = host.reshape(-1)[:12]
    stream.copy_to_device(array, whole)
    assert emulated.calls[-1] == ("memcpyAsync", (at, whole.ctypes.data, 24, 1, stream._address))


def test_waits_and_records_name_stream_and_event(emulated: EmulatedCupy) -> None:
    device = CudaDevice()
    stream, event = device.stream("s"), device.event()
    stream.record(event)
    stream.wait(event)
    assert emulated.calls[-2] == ("eventRecord", (event.address, stream._address))
    assert emulated.calls[-1] == ("streamWaitEvent", (stream._address, event.address))


def test_out_of_memory_has_one_type(emulated: EmulatedCupy) -> None:
    device = CudaDevice()
    with pytest.raises(OutOfDeviceMemoryError, match="device memory: asked for"):
        device.allocate(emulated.memory_bytes + 1)
    emulated.synchronize_error = 2  # as when lazy loading of a kernel finds no memory
    for wait in (device.event().synchronize, device.stream("s").synchronize):
        with pytest.raises(OutOfDeviceMemoryError):
            wait()
    emulated.synchronize_error = 0
    for status_of, raised in ({"malloc": 2}, False), ({"gemm": 3}, False), ({"hostAlloc": 2}, True):
        emulated.fault = lambda name, status_of=status_of: status_of.get(name, 0)
        with pytest.raises(OutOfDeviceMemoryError) as error:
            use_everything(device)
        assert error.value.pinned == raised
        assert error.value.asked_bytes == (0 if "gemm" in status_of else 4096)
    emulated.fault = lambda name: 0
    use_everything(device)
    device.close()
    assert (emulated.blocks, emulated.pinned) == ({}, {})


def use_everything(device: CudaDevice) -> None:
    """Every kind of call once, on 4096 bytes."""
    stream, event = device.stream("s"), device.event()
    pinned, block = device.allocate_pinned(4096), device.allocate(4096)
    x = DeviceArray(block, 0, (2, 4), WeightFormat.FP16)
    y = DeviceArray(block, 1024, (2, 2), WeightFormat.FP32)
    stream.copy_to_device(x, pinned[: x.nbytes])
    stream.gemm(x, DeviceArray(block, 512, (4, 2), WeightFormat.FP16), y, Layout.KN)
    stream.copy_to_host(pinned[: y.nbytes], y)
    stream.record(event)
    stream.wait(event)
    event.synchronize()
    stream.synchronize()
    device.memory()
    device.free(block)


CALLS = (
    *("streamCreate", "eventCreate", "hostAlloc", "malloc", "memcpyAsync", "getDevice", "gemm"),
    *("eventRecord", "streamWaitEvent", "synchronize", "memGetInfo"),
)


@pytest.mark.parametrize("call", CALLS)
def test_a_lost_device_is_noticed_by_every_call_and_asked_nothing_more(emulated: EmulatedCupy, call: str) -> None:
    device = CudaDevice()
    block, pinned, event = device.allocate(4096), device.allocate_pinned(4096), device.event()

    def fault(name: str) -> int:
        if name != call:
            return 0
        emulated.broken = 700
        return 14 if name == "gemm" else 700

    emulated.fault = fault
    with pytest.raises(DeviceLostError, match="Emulated GPU failed: cudaError 700"):
        use_everything(device)
    entered = emulated.entered
    for use in (use_everything, CudaDevice.memory):
        with pytest.raises(DeviceLostError):
            use(device)
    with pytest.raises(DeviceLostError):
        event.synchronize()
    device.start_trace()
    assert device.take_trace() == []
    device.free(block)
    device.close()
    device.close()
    del pinned, event, block, device
    assert emulated.entered == entered


@pytest.mark.parametrize("status", [13, 15])
def test_a_gemm_that_fails_for_no_other_reason_ends_the_use_of_the_device(emulated: EmulatedCupy, status: int) -> None:
    device = CudaDevice()
    emulated.fault = lambda name: status if name == "gemm" else 0
    with pytest.raises(DeviceLostError, match=f"CUBLAS_STATUS {status}"):
        use_everything(device)


def test_memory_that_cublas_found_none_of_is_not_a_lost_device(emulated: EmulatedCupy) -> None:
    device = CudaDevice()

    def fault(name: str) -> int:
        emulated.synchronize_error = 2 if name == "gemm" else emulated.synchronize_error
        return 13 if name == "gemm" else 0

    emulated.fault = fault
    with pytest.raises(OutOfDeviceMemoryError):
        use_everything(device)


def test_a_mistake_of_ours_stays_what_it_is(emulated: EmulatedCupy) -> None:
    device = CudaDevice()
    emulated.fault = lambda name: 1 if name == "memcpyAsync" else 0
    with pytest.raises(RuntimeError, match=r"cudaError 1$"):
        use_everything(device)
    emulated.fault = lambda name: 0
    use_everything(device)


@pytest.mark.parametrize("status", [2, 700])
@pytest.mark.parametrize("call", ["malloc", "hostAlloc", "memcpyAsync", "streamCreate"])
def test_a_device_that_fails_while_it_is_tried_is_not_usable(emulated: EmulatedCupy, call: str, status: int) -> None:
    emulated.fault = lambda name: status if name == call else 0
    with pytest.raises(DeviceUnavailableError, match="Emulated GPU fails a trial multiplication") as error:
        CudaDevice()
    assert "\n" not in str(error.value)


def test_close_frees_everything_once(emulated: EmulatedCupy) -> None:
    device = CudaDevice()
    device.allocate(100)
    device.close()
    device.close()
    assert emulated.blocks == {}
    assert [name for name, _ in emulated.calls].count("destroy") == 1


def test_blocks_of_no_bytes_can_be_freed(emulated: EmulatedCupy) -> None:
    """The emulation refuses to allocate nothing."""
    device = CudaDevice()
    blocks = [device.allocate(0) for _ in range(2)]
    assert [block.nbytes for block in blocks] == [0, 0]
    for block in blocks:
        device.free(block)
    assert emulated.blocks == {}


@pytest.mark.parametrize(("listed", "context_bytes"), [(True, 4_000), (False, 4_000)])
def test_context_is_measured_by_nvml_where_it_can(
    emulated: EmulatedCupy, monkeypatch: pytest.MonkeyPatch, listed: bool, context_bytes: int
) -> None:
    nvml = FakeNvml(lambda: 4_000 if emulated.entered else 0, others_bytes=1_000).install(monkeypatch)
    if not listed:
        nvml.pids.clear()
    emulated.malloc(7_000)  # somebody's: CUDA counts it
    emulated.entered = 0
    device = CudaDevice()
    assert device.fixed_bytes == {"context": context_bytes, "workspace": 0}
    assert CudaDevice().fixed_bytes == {"context": context_bytes, "workspace": 0}, "it is there only once"
    device.close()
    assert nvml.started == 1


def test_context_without_nvml_is_an_upper_bound(emulated: EmulatedCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml().install(monkeypatch).refused["init"] = NVMLError(9)
    emulated.malloc(7_000)  # somebody's: it counts as ours
    assert CudaDevice().fixed_bytes["context"] == 7_000


def test_a_device_that_does_not_start_leaves_nvml_shut_down(
    emulated: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml().install(monkeypatch)
    emulated.fault = lambda name: 2 if name == "memGetInfo" else 0
    with pytest.raises(DeviceUnavailableError, match="CUDA device 0 does not start"):
        CudaDevice()
    assert nvml.started == 0


def test_what_would_lift_the_process_above_its_budget_is_not_asked_of_the_driver(emulated: EmulatedCupy) -> None:
    device = CudaDevice()
    device.vram.limit_bytes = 5 << 20
    device.allocate(3 << 20)  # counts as two granules of 2 MiB
    with pytest.raises(OverBudgetError) as error:
        device.allocate(3 << 20)
    assert error.value.missing_bytes == 2 << 20
    assert [len(block) for block in emulated.blocks.values()] == [3 << 20]
