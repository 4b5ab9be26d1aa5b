"""The GPU kit's CUDA calls on an emulation of CuPy, and its NVML on a library made for it."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import environment, gemm_cases, kernels, rates, roof
from bench.gpu.device_time import Bench
from bench.gpu.gemm_cases import Matrix
from bench.gpu.nvml_library import Nvml, PeakMemory
from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceUnavailableError
from tests.device.emulated_cupy import EmulatedCupy
from tests.gpu_kit.jobs import a_job
from tests.kernels.cuda.emulated_nvrtc import EmulatedNvrtc


class Emulated(EmulatedCupy):
    """With copies inside the device, copies into pageable memory, and what the environment asks."""

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        if kind == 3:
            assert self._is_device(dst, nbytes)
            assert self._is_device(src, nbytes)
            self.calls.append(("device to device", (dst, src, nbytes)))
            return
        super().memcpyAsync(dst, src, nbytes, kind, stream)

    def install(self, monkeypatch: Any) -> None:
        super().install(monkeypatch)
        monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
        numbers = dict.fromkeys(("major", "minor", "multiProcessorCount", "l2CacheSize", "asyncEngineCount"), 7)
        runtime = sys.modules["cupy.cuda.runtime"]
        properties = {**runtime.getDeviceProperties(0), "name": b"Emulated GPU", **numbers}
        monkeypatch.setattr(runtime, "getDeviceProperties", lambda ordinal: properties, raising=False)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    cupy = Emulated()
    cupy.install(monkeypatch)
    return cupy


def test_the_environment_of_a_cuda_device(emulated: Emulated, tmp_path: Path) -> None:
    found = environment.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert (found["gpu"]["name"], found["gpu"]["compute_capability"]) == ("Emulated GPU", "7.7")
    assert found["gpu"]["cuda_driver"] == 12_040
    text = "\n".join(environment.markdown(found))
    assert "compute capability 7.7" in text
    assert "int4 takes kernels of our own: CuPy's bindings of NVRTC cannot be imported" in text


def test_kernels_on_a_cuda_device_are_exact_cublas_and_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of x in the matrices of one size: our kernels are compiled for the CPU, one after the other."""
    emulated = Emulated()
    EmulatedNvrtc().install(monkeypatch, emulated, tmp_path)
    monkeypatch.setattr(kernels, "matrices", lambda shape: (Matrix("m", 128, 48),))
    monkeypatch.setattr(gemm_cases, "matrices", kernels.matrices)
    found = kernels.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert found["not_measured"] == {}
    # A few roundings of fp32: in which order the emulation adds is up to the processor.
    assert all(reading["error"] < 5e-7 for reading in found["readings"])
    counts = Counter(reading["kernel"] for reading in found["readings"])
    assert counts == {"cuBLAS": 3 * 2 * 2, "CUDA C": 2 * (2 * 2 + 4)}
    assert emulated.blocks == {}
    assert "0 of 28 results are off" in "\n".join(kernels.markdown(found))


def test_without_a_compiler_the_library_alone_is_measured(emulated: Emulated, tmp_path: Path) -> None:
    found = kernels.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert {reading["kernel"] for reading in found["readings"]} == {"cuBLAS"}
    assert set(found["not_measured"]) == {"int8", "int4"}


def test_a_kernel_that_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("as it was told to")

    monkeypatch.setattr(gemm_cases.OwnBlocks, "queue", fail)
    found = kernels.run(a_job(tmp_path, "simulated"), lambda found: None)
    assert all("blocks" not in reading["weights"] for reading in found["readings"])
    assert "modelled, int4, blocks of 64, q_proj, 1 row" in found["not_measured"]
    failed = "- modelled, int8, blocks of 64, q_proj, 1 row and 39 more: not measured, RuntimeError: as it was told to"
    assert failed in kernels.markdown(found)


def test_the_roof_counts_bytes_read_and_bytes_written(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(roof, "perf_counter", lambda: next(now))  # every round takes a second
    device = CudaDevice()
    assert roof.roof_bytes_per_s(device, 4096)[0] == 2 * 8 * 4096
    assert all(size == 4096 for name, (*_, size) in emulated.calls if name == "device to device")
    device.close()


def test_copies_back_into_pageable_memory(emulated: Emulated, tmp_path: Path) -> None:
    emulated.takes_pageable = True
    device = CudaDevice()
    rate = rates._pageable_back(device, a_job(tmp_path, "cuda"))
    assert rate is not None
    assert rate > 0
    assert emulated.blocks == {}
    device.close()


def test_times_leave_the_blocking_copy_out(emulated: Emulated) -> None:
    device = CudaDevice()
    bench = Bench(device, 4096, 4096)
    pinned = device.allocate_pinned(1024)
    assert bench.times_s(pinned, lambda: None) == []
    bench.close()
    device.close()


NVML = """
#include <string.h>
static int asked;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **h) {
    *h = (void *)7;
    return strcmp(id, "0000:01:00.0") != 0;
}
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) {
    m[2] = asked++ == 3 ? 5000 : 1000;
    return h != (void *)7;
}
int nvmlSystemGetDriverVersion(char *text, unsigned n) { strncpy(text, "580.1", n); return 0; }
int nvmlDeviceGetCurrPcieLinkGeneration(void *h, unsigned *v) { *v = 1; return 0; }
int nvmlDeviceGetCurrPcieLinkWidth(void *h, unsigned *v) { *v = 8; return 0; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *h, unsigned *v) { *v = 5; return 0; }
int nvmlDeviceGetMaxPcieLinkWidth(void *h, unsigned *v) { *v = 16; return 0; }
"""


def test_nvml_is_asked_without_a_package_and_the_peak_is_kept(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a stand-in for NVML with")
    source, library = tmp_path / "nvml.c", tmp_path / "nvml.so"
    source.write_text(NVML)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(library)], check=True)
    nvml = Nvml("0000:01:00.0", str(library))
    assert nvml.driver() == "580.1"
    assert nvml.pcie() == {"generation_now": 1, "lanes_now": 8, "generation": 5, "lanes": 16}
    with PeakMemory(nvml) as watch:
        while watch.samples < 5:
            time.sleep(0.001)
    assert watch.peak_bytes == 4000
    with pytest.raises(DeviceUnavailableError, match="nvmlDeviceGetHandleByPciBusId_v2 answers with status 1"):
        Nvml("0000:02:00.0", str(library))
    with pytest.raises(DeviceUnavailableError, match="NVML cannot be loaded"):
        Nvml("0000:01:00.0", str(tmp_path / "none.so"))
