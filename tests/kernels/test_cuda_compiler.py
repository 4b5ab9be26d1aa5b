"""Compiling, keeping and launching kernels, with NVRTC and the driver emulated by the shim."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_compiler import CudaCompiler
from offload.devices.cuda_kernels import BlockWeight, CudaKernels, FloatWeight
from offload.errors import DeviceUnavailableError
from offload.kernels.cuda.launch import BlockFormat, multiply_float
from offload.specs import Layout, WeightFormat
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.support import download, random_stored, upload
from tests.kernels.emulated_nvrtc import EmulatedNvrtc
from tests.kernels.operands import BlockOperands, FloatOperands, check, multiply

LAUNCH = multiply_float(WeightFormat.FP16, Layout.NK, 1, 64, 64, True, 1).launch


def compiler(nvrtc: EmulatedNvrtc, folder: Path, capability: int = 75) -> CudaCompiler:
    return CudaCompiler(nvrtc, nvrtc, nvrtc.load, capability, folder)


def test_a_kernel_is_compiled_once_and_kept(tmp_path: Path) -> None:
    nvrtc = EmulatedNvrtc()
    made = compiler(nvrtc, tmp_path / "new" / "folder")
    operands = FloatOperands.random(WeightFormat.FP16, Layout.NK, 1, 17, 40)
    for _ in range(2):
        operands.check(multiply(CudaKernels(made, 1), operands), with_bias=False)
    assert len(nvrtc.compiled) == 1
    assert "-arch=sm_75" in nvrtc.compiled[0]
    again = compiler(nvrtc, tmp_path / "new" / "folder")
    operands.check(multiply(CudaKernels(again, 1), operands), with_bias=False)
    assert len(nvrtc.compiled) == 1  # read from the folder
    compiler(nvrtc, tmp_path / "new" / "folder", capability=80).prepare(LAUNCH)
    assert len(nvrtc.compiled) == 2  # another GPU, another code


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"!" + data[41:]]
)
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: Any) -> None:
    nvrtc = EmulatedNvrtc()
    compiler(nvrtc, tmp_path).prepare(LAUNCH)
    (kept,) = tmp_path.iterdir()
    right = kept.read_bytes()
    kept.write_bytes(damage(right))
    compiler(nvrtc, tmp_path).prepare(LAUNCH)
    assert len(nvrtc.compiled) == 2
    assert kept.read_bytes() == right


def test_no_folder_to_keep_kernels_in_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiler(EmulatedNvrtc(), tmp_path / "file" / "folder").prepare(LAUNCH)


def test_a_gpu_newer_than_nvrtc_gets_code_for_the_driver_to_translate(tmp_path: Path) -> None:
    nvrtc = EmulatedNvrtc()
    compiler(nvrtc, tmp_path, capability=120).prepare(LAUNCH)
    assert nvrtc.compiled == [("-arch=compute_90", "--std=c++17")]


@pytest.mark.parametrize(
    ("settings", "capability", "message"),
    [
        (
            {"broken": 'no "libnvrtc.so.12"\n'},
            75,
            r"NVRTC cannot be loaded \(pip install 'cupy-cuda12x\[ctk\]'.*libnvrtc",
        ),
        ({}, 61, "NVRTC 12.9 compiles for sm_75 and newer, not for sm_61"),
        ({"refuses": "no kernel\nimage"}, 75, r"compiled for sm_75; update the driver: no kernel image"),
    ],
)
def test_says_in_one_line_what_is_missing(tmp_path: Path, settings: Any, capability: int, message: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=message) as error:
        compiler(EmulatedNvrtc(**settings), tmp_path, capability).prepare(LAUNCH)
    assert "\n" not in str(error.value)


def test_shows_what_nvrtc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.devices.cuda_compiler.program", lambda file: "#error")
    with pytest.raises(DeviceUnavailableError, match=r"does not compile multiply_float_nk<.*error: it says #error"):
        compiler(EmulatedNvrtc(), tmp_path).prepare(LAUNCH)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EmulatedNvrtc:
    """CuPy with NVRTC, and a home folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, weight_format: True)
    EmulatedCupy().install(monkeypatch)
    nvrtc = EmulatedNvrtc()
    nvrtc.install(monkeypatch)
    return nvrtc


def test_a_stream_multiplies_half_weights(nvrtc: EmulatedNvrtc) -> None:
    device = CudaDevice()
    stream, block = device.stream("compute"), device.allocate(1 << 20)
    rng = np.random.default_rng(0)
    stored, values = random_stored(rng, (24, 1000), WeightFormat.FP16), rng.standard_normal((2, 1000))
    w = upload(device, stream, block, 0, stored, WeightFormat.FP16)
    x = upload(device, stream, block, 1 << 18, values.astype(np.float32), WeightFormat.FP32)
    y = DeviceArray(block, 1 << 19, (2, 24), WeightFormat.FP32)
    weight = FloatWeight(block.address, WeightFormat.FP16, Layout.NK, 24, 1000)
    scratch_bytes = device.kernels.scratch_bytes(2, weight)
    assert scratch_bytes > 0
    scratch = DeviceArray(block, 3 << 18, (1, scratch_bytes // 4), WeightFormat.FP32)
    device.start_trace()
    stream.multiply_rows(x, weight, y, scratch)
    assert [span.name for span in device.take_trace()] == ["multiply 2x1000x24"]
    check(download(device, stream, y), values.astype(np.float32), stored.astype(np.float64).T, None)
    assert w.allocation is block
    assert len(set(nvrtc.streams)) == 1
    device.close()


def test_a_stream_multiplies_quantised_weights_and_adds_a_bias(nvrtc: EmulatedNvrtc) -> None:
    device = CudaDevice()
    stream, block = device.stream("compute"), device.allocate(1 << 16)
    operands = BlockOperands.random(BlockFormat(4, 32, WeightFormat.FP16), True, 1, 8, 64)
    offset, places = 0, []
    for array in (operands.numbers, operands.scales, operands.zeros, operands.bias, operands.x):
        data = array.reshape(1, -1)
        places.append(DeviceArray(block, offset, (1, -(-data.nbytes // 2)), WeightFormat.FP16))
        pinned = device.allocate_pinned(places[-1].nbytes)
        pinned[: data.nbytes] = data.view(np.uint8)
        stream.copy_to_device(places[-1], pinned)
        offset += 4096
    numbers, scales, zeros, *_ = (block.address + place.offset_bytes for place in places)
    weight = BlockWeight(numbers, scales, zeros, operands.weight.format, 8, 64)
    x, bias, y = (
        DeviceArray(block, start, (1, size), WeightFormat.FP32)
        for start, size in ((4 * 4096, 64), (3 * 4096, 8), (5 * 4096, 8))
    )
    scratch = DeviceArray(block, 6 * 4096, (1, 256), WeightFormat.FP32)
    stream.multiply_rows(x, weight, y, scratch, bias)
    operands.check(download(device, stream, y), with_bias=True)
    device.close()


def test_a_device_without_nvrtc_works_until_a_kernel_is_asked_for(nvrtc: EmulatedNvrtc) -> None:
    nvrtc.broken = "libnvrtc is missing"
    device = CudaDevice()
    with pytest.raises(DeviceUnavailableError, match="NVRTC cannot be loaded"):
        device.kernels.scratch_bytes(1, FloatWeight(0, WeightFormat.FP16, Layout.NK, 8, 8))
    device.close()
