"""Drivers, GPUs and CUDA: the real pynvml against a stub of the driver, and what is concluded from its answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.doctor.cuda_probe import CudaProbe, LoadedLibrary, ProbeResult, examine_libraries, loaded_libraries
from hybrid.doctor.gpu import examine_cuda, examine_driver
from hybrid.doctor.packages import FindVersion
from hybrid.doctor.report import Finding, Level
from offload.devices.cuda.nvml import Driver, GpuSeen
from tests.nvml_stub import build_stub
from tests.unit.doctor.test_examination import versions

ROOT = Path(__file__).parents[3]
GPU = GpuSeen("Stub T4", 14 << 30, 15 << 30, (7, 5))
NEW, OLD, ANCIENT = (
    Driver(version, cuda, (GPU,))
    for version, cuda in (("580.65.06", (13, 0)), ("535.104.05", (12, 2)), ("470.82.01", (11, 4)))
)
_EXAMINE = """
import json, os, sys
from importlib.metadata import PackageNotFoundError
from hybrid.doctor import examine

def find_version(name):
    if name == "onnxruntime":
        return "1.24.0"
    raise PackageNotFoundError(name)

for settings in json.loads(sys.argv[1]):
    os.environ.update(settings)
    report = examine(None, os.environ, find_version)
    print(json.dumps({s.title: [[str(f.level), f.text, f.mend] for f in s.findings] for s in report.sections}))
    for name in settings:
        del os.environ[name]
"""


Examined = dict[str, list[list[str]]]  # level, text and mend of every finding, by section

# What the stub is told, by what it is like then.
STUBS = {
    "usual": {},
    "mute": {
        "STUB_REFUSES": "nvmlSystemGetDriverVersion nvmlDeviceGetMemoryInfo nvmlDeviceGetCudaComputeCapability",
        "STUB_GPUS": "2",
        "STUB_CUDA": "12040",
    },
    "no count": {"STUB_REFUSES": "nvmlDeviceGetCount_v2"},
    "no handle": {"STUB_REFUSES": "nvmlDeviceGetHandleByIndex_v2"},
    "no CUDA version": {"STUB_REFUSES": "nvmlSystemGetCudaDriverVersion_v2"},
    "not loaded": {"STUB_INIT": "9"},  # NVML_ERROR_DRIVER_NOT_LOADED
}


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examined]:
    """Examinations in one process that has the stub for a driver, under each of its settings."""
    stub = build_stub(tmp_path_factory.mktemp("nvml"))
    environment = {"LD_LIBRARY_PATH": str(stub), "PYTHONPATH": str(ROOT), "HOME": str(stub)}
    command = [sys.executable, "-c", _EXAMINE, json.dumps(list(STUBS.values()))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=stub)
    return dict(zip(STUBS, map(json.loads, done.stdout.splitlines()), strict=True))


def test_a_gpu_without_cupy_is_a_problem_with_a_mend(examined: dict[str, Examined]) -> None:
    found = examined["usual"]
    assert found["GPU"] == [
        ["ok", "driver 580.65.06, serves CUDA up to 13.0", ""],
        ["ok", "GPU 0: Stub T4, 14.00 GiB of 15.00 GiB free, compute capability 7.5", ""],
    ]
    mend = "pip uninstall -y onnxruntime && pip install 'hybrid-run[cu13]'"
    assert found["CUDA"] == [["problem", "CuPy is not installed: the GPU is not used", mend]]


def test_every_metric_may_be_missing_on_its_own(examined: dict[str, Examined]) -> None:
    found = examined["mute"]
    assert found["GPU"] == [
        ["ok", "driver of unknown version, serves CUDA up to 12.4", ""],
        ["note", "GPU 0: Stub T4, memory unknown: give --cuda a number of GiB", ""],
        ["note", "GPU 1: Stub T4, memory unknown: give --cuda a number of GiB", ""],
    ]
    assert found["CUDA"][0][2].endswith("'hybrid-run[cu12]'")


@pytest.mark.parametrize(
    ("stub", "said"),
    [
        ("no count", "the driver sees no GPU"),
        ("no handle", "GPU 0: name unknown, memory unknown: give --cuda a number of GiB"),
        ("no CUDA version", "driver 580.65.06, serves CUDA up to unknown"),
    ],
)
def test_the_rest_is_told_without_it(examined: dict[str, Examined], stub: str, said: str) -> None:
    assert said in [text for _, text, _ in examined[stub]["GPU"]]


def test_a_driver_that_does_not_start_is_no_driver(examined: dict[str, Examined]) -> None:
    ((level, text, _),) = examined["not loaded"]["GPU"]
    assert level in ("note", "problem")  # a problem on a machine that has an NVIDIA GPU
    assert "no NVIDIA driver found (Driver Not Loaded)" in text


def pci_device(root: Path, vendor: str = "0x10de", kind: str = "0x030200") -> None:
    device = root / "sys" / "bus" / "pci" / "devices" / "0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


def test_a_gpu_without_a_driver_is_a_problem(tmp_path: Path) -> None:
    pci_device(tmp_path)
    (finding,) = examine_driver(None, "no driver", tmp_path)
    assert (finding.level, finding.mend) == (Level.PROBLEM, "sudo apt-get install -y nvidia-driver-580")
    (tmp_path / ".dockerenv").touch()
    assert examine_driver(None, "no driver", tmp_path)[0].mend.startswith("docker run --gpus all -e ")


@pytest.mark.parametrize(("vendor", "kind"), [("0x1002", "0x030000"), ("0x10de", "0x0c0330")])
def test_other_devices_need_no_driver_of_nvidia(tmp_path: Path, vendor: str, kind: str) -> None:
    pci_device(tmp_path, vendor, kind)
    assert examine_driver(None, "no driver", tmp_path)[0].level is Level.NOTE


def cuda(
    driver: Driver | None, probed: ProbeResult | None, find_version: FindVersion, **environment: str
) -> list[Finding]:
    return examine_cuda(driver, probed, find_version, environment)


@pytest.mark.parametrize(
    ("driver", "name", "mend"),
    [
        (OLD, "cupy_cuda13x", "pip uninstall -y cupy-cuda13x && pip install 'hybrid-run[cu12]'"),
        (ANCIENT, "cupy_cuda12x", "sudo apt-get install -y nvidia-driver-580"),
    ],
)
def test_a_driver_too_old_for_cupy(driver: Driver, name: str, mend: str) -> None:
    first, *_ = cuda(driver, ProbeResult(error="the NVIDIA driver is too old"), versions(**{name: "14.0.1"}))
    assert first.level is Level.PROBLEM
    assert str(driver.version) in first.text
    assert first.mend == mend


@pytest.mark.parametrize(("driver", "name"), [(NEW, "cupy_cuda13x"), (NEW, "cupy_cuda12x"), (OLD, "cupy_cuda12x")])
def test_a_driver_serves_older_builds_of_cupy(driver: Driver, name: str) -> None:
    findings = cuda(driver, ProbeResult(name="Stub T4"), versions(**{name: "14.0.1"}))
    (finding,) = findings
    assert finding.level is Level.OK
    assert "Stub T4" in finding.text


def test_cuda_that_does_not_start_is_a_problem_only_where_there_is_a_gpu() -> None:
    failed, build = ProbeResult(error="cuBLAS cannot be loaded"), versions(cupy_cuda12x="14.0.1")
    assert cuda(OLD, failed, build)[-1].mend == "pip install --upgrade 'cupy-cuda12x[ctk]'"
    assert cuda(OLD, failed, build)[-1].level is Level.PROBLEM
    assert cuda(None, failed, build)[-1].level is Level.NOTE


def test_a_driver_without_its_part_of_cuda_is_mended_there() -> None:
    failed = ProbeResult(error="no NVIDIA driver is installed", has_libcuda=False)
    (finding,) = cuda(NEW, failed, versions(cupy_cuda13x="14.0.1"))
    assert "hybrid-run" not in finding.mend
    assert "cupy" not in finding.mend


def test_cuda_that_sees_no_gpu_because_it_is_told_so() -> None:
    failed = ProbeResult(error="no CUDA device is visible")
    assert cuda(NEW, failed, versions(cupy_cuda13x="14.0.1"), CUDA_VISIBLE_DEVICES="-1")[-1].mend.startswith("unset")


def test_hidden_gpus_and_formats_that_stay_on_the_cpu_are_noted() -> None:
    probed = ProbeResult(name="Stub T4", unsupported={"bf16": "cuBLAS refuses bf16"})
    found = cuda(NEW, probed, versions(cupy_cuda13x="14.0.1"), CUDA_VISIBLE_DEVICES="")
    hidden, refused = (finding.text for finding in found if finding.level is Level.NOTE)
    assert "CUDA_VISIBLE_DEVICES" in hidden
    assert "cuBLAS refuses bf16" in refused


MAPS = """\
7f0000000000-7f0000001000 r--p 00000000 08:01 11  /venv/lib/nvidia/cublas/lib/libcublas.so.12
7f0000001000-7f0000002000 r-xp 00001000 08:01 11  /venv/lib/nvidia/cublas/lib/libcublas.so.12
7f0000003000-7f0000004000 r--p 00000000 08:01 12  /usr/local/cuda 12.4/lib/libnvrtc.so.12.4.127
7f0000005000-7f0000006000 r--p 00000000 08:01 13  /usr/lib/libcudart-1a2b3c.so.13.0.96 (deleted)
7f0000007000-7f0000008000 r--p 00000000 08:01 14  /usr/lib/libcuda.so.580.65.06
7f0000009000-7f000000a000 rw-p 00000000 00:00 0
7f000000b000-7f000000c000 rw-p 00000000 00:00 0   [heap]
7f000000d000-7f000000e000 r--p 00000000 08:01 15  /usr/lib/libcublas_notes.txt
"""


def test_loaded_libraries_are_read_from_the_memory_map() -> None:
    assert loaded_libraries(MAPS) == [
        LoadedLibrary("cublas", "12", "/venv/lib/nvidia/cublas/lib/libcublas.so.12"),
        LoadedLibrary("cuda", "580.65.06", "/usr/lib/libcuda.so.580.65.06"),
        LoadedLibrary("cudart", "13.0.96", "/usr/lib/libcudart-1a2b3c.so.13.0.96"),
        LoadedLibrary("nvrtc", "12.4.127", "/usr/local/cuda 12.4/lib/libnvrtc.so.12.4.127"),
    ]


def test_libraries_of_two_cuda_versions_do_not_mix() -> None:
    findings = examine_libraries(loaded_libraries(MAPS), versions(nvidia_cublas_cu12="12.9.1.4"), "cu12")
    assert all(part in findings[0].text for part in ("12.9.1.4", "/venv/lib/nvidia/cublas/lib/libcublas.so.12"))
    assert all(version in findings[-1].text for version in ("12", "13"))
    assert findings[-1].level is Level.PROBLEM
    assert all(finding.level is Level.OK for finding in findings[:-1])


def test_the_probe_answers_without_a_gpu() -> None:
    assert CudaProbe().result().error != ""


def test_a_probe_that_hangs_or_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CudaProbe().result(timeout_s=0.001).error.startswith("CUDA did not start within")
    for script, said in (
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("exit 3", "failed with code 3"),
        ("echo warning", "failed with code 0"),
    ):
        shell = Path("/bin/sh")
        monkeypatch.setattr(sys, "executable", str(shell))
        monkeypatch.setattr("hybrid.doctor.cuda_probe._CODE", script)
        assert said in CudaProbe().result().error
