"""Compiling, keeping and launching kernels, with NVRTC and the driver emulated by the shim."""

from pathlib import Path
from typing import Any

import pytest

from offload.devices.cuda.compiler import CudaCompiler
from offload.devices.cuda.kernels.launch import multiply_float, sum_splits
from offload.devices.cuda.own_kernels import CudaKernels
from offload.errors import DeviceUnavailableError
from offload.spec.linear import Layout, WeightFormat
from tests.device.emulated_cupy import CUDADriverError
from tests.kernels.cuda.emulated_nvrtc import EmulatedNvrtc
from tests.kernels.cuda.operands import FloatOperands, multiply

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
    compiler(nvrtc, tmp_path / "new" / "folder", capability=80).prepare([LAUNCH])
    assert len(nvrtc.compiled) == 2  # another GPU, another code


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"!" + data[41:]]
)
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: Any) -> None:
    nvrtc = EmulatedNvrtc()
    compiler(nvrtc, tmp_path).prepare([LAUNCH])
    (kept,) = tmp_path.iterdir()
    right = kept.read_bytes()
    kept.write_bytes(damage(right))
    compiler(nvrtc, tmp_path).prepare([LAUNCH])
    assert len(nvrtc.compiled) == 2
    assert kept.read_bytes() == right


def test_kernels_of_one_program_are_compiled_and_kept_together(tmp_path: Path) -> None:
    nvrtc = EmulatedNvrtc()
    launches = [multiply_float(WeightFormat.FP16, Layout.NK, rows, 64, 64, True, 1).launch for rows in (1, 2, 3)]
    made = compiler(nvrtc, tmp_path)
    made.prepare([*launches, sum_splits(1, 1)])
    assert len(nvrtc.compiled) == len(list(tmp_path.iterdir())) == 2
    made.prepare(launches[1:])  # both are there
    operands = FloatOperands.random(WeightFormat.FP16, Layout.NK, 2, 64, 64)
    operands.check(multiply(CudaKernels(made, 1), operands), with_bias=False)
    compiler(nvrtc, tmp_path).prepare(launches[::-1])  # read from the folder, whatever the order
    assert len(nvrtc.compiled) == 2


@pytest.mark.parametrize("status", [2, 700])
def test_memory_that_runs_out_and_lost_devices_are_no_old_driver(tmp_path: Path, status: int) -> None:
    """Whoever called knows what these mean."""
    nvrtc = EmulatedNvrtc()

    def load(code: bytes) -> None:
        raise CUDADriverError(status)

    with pytest.raises(CUDADriverError):
        CudaCompiler(nvrtc, nvrtc, load, 75, tmp_path).prepare([LAUNCH])


def test_no_folder_to_keep_kernels_in_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiler(EmulatedNvrtc(), tmp_path / "file" / "folder").prepare([LAUNCH])


def test_a_gpu_newer_than_nvrtc_gets_code_for_the_driver_to_translate(tmp_path: Path) -> None:
    nvrtc = EmulatedNvrtc()
    compiler(nvrtc, tmp_path, capability=120).prepare([LAUNCH])
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
        compiler(EmulatedNvrtc(**settings), tmp_path, capability).prepare([LAUNCH])
    assert "\n" not in str(error.value)


def test_shows_what_nvrtc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.devices.cuda.compiler.program", lambda file: "#error")
    with pytest.raises(DeviceUnavailableError, match=r"compile the kernel multiply_float_nk<.*error: it says #error"):
        compiler(EmulatedNvrtc(), tmp_path).prepare([LAUNCH])
    assert list(tmp_path.iterdir()) == []
