"""The GPU kit, rehearsed: from end to end without a GPU, and its CUDA calls on an emulation of CuPy."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.gpu import environment, gemm_cases, kernels, part, rates, roof, run, speed
from bench.gpu import tests as gpu_tests
from bench.gpu.cap import _row
from bench.gpu.device_time import Bench
from bench.gpu.gemm_cases import Gemm, Matrix, OwnBlocks, OwnGemm, cases
from bench.gpu.job import Job
from bench.gpu.nvml_library import Nvml, PeakMemory
from bench.gpu.overlap import balanced, busy_shares, overlap
from bench.gpu.report import report
from bench.models import DTYPES, Weights
from hybrid.runtime.machines import find_profile
from offload.devices.base import Span
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_kernels import CudaKernels
from offload.errors import DeviceUnavailableError
from offload.specs import Layout, WeightFormat
from offload.telemetry import Step
from tests.device.emulated_cupy import EmulatedCupy
from tests.kernels.host_shim import HostLauncher

ROOT = Path(__file__).parents[2]
# What a GPU machine may lack.
ABSENT = (
    *("typer", "rich", "tokenizers", "jinja2", "huggingface_hub", "matplotlib", "pynvml", "threadpoolctl"),
    *("prompt_toolkit", "markdown_it"),
)
BARE = f"""
import sys
from importlib.machinery import PathFinder

class BareFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        absent = name in {ABSENT} and spec is not None and "stand_ins" not in spec.origin
        return None if absent else spec

sys.meta_path[sys.meta_path.index(PathFinder)] = BareFinder
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a rehearsal by a Python that has none of the packages that may be absent."""
    bare = tmp_path_factory.mktemp("bare")
    (bare / "sitecustomize.py").write_text(BARE)
    out, work = tmp_path_factory.mktemp("out") / "gpu", tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "bench.gpu", "--device", "simulated", "--out", str(out), "--work", str(work)]
    environment = dict(os.environ, PYTHONPATH=str(bare))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []  # models are gone
    return out


def test_a_rehearsal_runs_every_part_and_says_that_it_is_modelled(rehearsed: Path) -> None:
    results = json.loads((rehearsed / "gpu.json").read_text())
    assert results["modelled"] is True
    parts = results["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    assert list(parts) == [part.name for part in run.PARTS]
    found = {name: part["found"] for name, part in parts.items()}
    assert set(found["environment"]["missing"]) >= {"threadpoolctl", "matplotlib"}
    assert found["tests"]["passed"] > 0 == found["tests"]["failed"]
    assert found["rates"]["gpu"]["bus_bytes_per_s"] > 0
    assert all(reading["exact"] for reading in found["kernels"]["readings"])
    assert set(found["overlap"]["step_s"]) == {"together", "resident", "streamed", "host"}
    half, nothing = found["speed"]["runs"]
    assert half["bytes"]["resident"] > 0 == nothing["bytes"]["resident"]
    assert all(run["decode_step_s"] > 0 < run["predicted_decode_step_s"] for run in (half, nothing))
    assert [row["within"] for row in found["cap"]["runs"]] == [True]
    assert json.loads((rehearsed / "timeline.json").read_text())["traceEvents"]
    assert results["pictures"] == "none: matplotlib is not installed"
    text = (rehearsed / "gpu.md").read_text()
    assert "Nothing here was measured on a GPU" in text
    assert all(f"## {part.title} (modelled)" in text for part in run.PARTS)
    assert sorted(path.name for path in rehearsed.iterdir()) == ["gpu.json", "gpu.md", "timeline.json"]


def test_pictures_are_drawn_of_what_there_is(rehearsed: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.gpu.plots import draw

    results = json.loads((rehearsed / "gpu.json").read_text())
    assert draw(results, tmp_path) == "speed.png, kernels.png, overlap.png"
    del results["parts"]["overlap"]["found"]["step_s"]
    assert draw(results, tmp_path) == "speed.png, kernels.png, overlap not drawn (KeyError('step_s'))"


def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    nowhere = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 2
    progress, error = done.stderr.splitlines()
    assert progress.startswith("1/8 Environment")
    assert error.startswith("error: ")
    assert error.endswith("--device simulated rehearses without one")
    assert not (tmp_path / "out" / "gpu.json").exists()


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = (run.Part("cap", "Cap", 5), run.Part("no_such_part", "None", 5), run.Part("environment", "Machine", 5))
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(run, "_draw", lambda results, out: None)
    results = run.run_parts("simulated", "rehearsal", tmp_path, tmp_path, 60, "command", "commit")
    cap, none, machine = results["parts"].values()
    assert cap["status"] == "failed: RuntimeError: no run with a budget was measured"
    assert none["status"].startswith("failed: ModuleNotFoundError")
    assert (machine["status"], machine["found"]["commit"]) == ("done", "commit")
    text = (tmp_path / "gpu.md").read_text()
    assert "**failed: RuntimeError: no run with a budget was measured**" in text
    assert "- GPU: simulated device" in text


def test_a_part_that_fails_keeps_what_it_had_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = a_job(tmp_path, "simulated")

    def measure(job: Job, save: Any) -> Any:
        save({"first": 1})
        raise ValueError("the second\nis none")

    monkeypatch.setattr(rates, "run", measure)
    monkeypatch.setattr(sys, "argv", ["part", "rates", part.to_argument(job)])
    assert part.main() == 1
    assert job.found("rates") == {"first": 1, "error": "ValueError: the second is none"}


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Its own child writes its number, and waits."""
    file = tmp_path / "pid"
    grandchild = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    limit_s = 0.5
    while not file.exists() or not file.read_text():
        assert limit_s < 60
        assert run._run_within(limit_s, [sys.executable, "-c", child]) is None
        limit_s *= 2
    stat = Path("/proc", file.read_text(), "stat")
    ends_s = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX":
        assert time.monotonic() < ends_s


def test_half_a_result_has_half_a_report() -> None:
    found = {"roof_bytes_per_s": 1e9, "roof": "copy"}
    part = {"title": "Rates", "status": "failed: not done after 5 s, and ended", "found": found}
    text = report({"modelled": False, "date": "today", "command": "kit", "parts": {"rates": part}})
    assert "**failed: not done after 5 s, and ended**" in text
    assert "no table: 'pageable_back_bytes_per_s' was not reached" in text
    assert "modelled" not in text


# The arithmetic.


def test_overlap_is_between_the_sum_and_the_longest() -> None:
    assert overlap(6.0, [1.0, 2.0, 3.0]) == 0
    assert overlap(3.0, [1.0, 2.0, 3.0]) == 1
    assert overlap(4.5, [1.0, 2.0, 3.0]) == 0.5


def test_busy_shares_count_each_moment_once() -> None:
    """0 to 10: CPU 1-3 and 3-5, two copies 3-7 and 4-6 on two streams, a GEMM 6-12."""
    host = (
        *(Span("islands", "", 1, 2, "attention"), Span("linears", "", 3, 2, "host columns")),
        Span("linears", "", 0, 10, "wait"),
    )
    devices = (Span("a", "", 3, 4, "copy-in"), Span("b", "", 4, 2, "copy-out"), Span("b", "", 6, 6, "gemm"))
    busy = busy_shares([Step("decode", 0.0, 10.0, host, devices)])
    assert busy == pytest.approx(
        {"CPU": 0.4, "copy engine": 0.4, "multiplying": 0.4, "two or more": 0.3, "all three": 0.0}
    )


def test_streamed_and_host_columns_are_to_take_equally_long() -> None:
    profile = find_profile("generic-gpu")
    shares = balanced(profile)
    assert profile.gpu is not None
    host = 1 - shares.resident - shares.streamed
    bus_s = shares.streamed / profile.gpu.bus_bytes_per_s
    assert bus_s == pytest.approx(host / profile.cpu.ram_bytes_per_s_beside_bus)


@pytest.mark.parametrize(
    ("nvml", "whole", "within"), [(100, 999, True), (101, 101, False), (None, 100, True), (None, 101, None)]
)
def test_memory_of_all_processes_proves_a_cap_but_never_disproves_it(
    nvml: int | None, whole: int, within: bool | None
) -> None:
    seen = {} if nvml is None else {"nvml_peak_bytes": nvml}
    row = {"model": "m", "dtype": "fp16", "share": 0.5, "budget_bytes": 100, "plan_vram_bytes": 90}
    told = row | {"device_used_bytes": whole, "vram_peak_bytes": 101, "vram_peak_source": "cuda"} | seen
    assert _row(told)["within"] is within
    for own in (100, 101):  # what NVML told the run of its own process is more certain
        assert _row(told | {"vram_peak_bytes": own, "vram_peak_source": "process"})["within"] is (own == 100)


def test_a_budget_is_the_fixed_costs_and_a_share_of_the_linears(tmp_path: Path) -> None:
    job = a_job(tmp_path, "cuda")
    job.found_file("environment").write_text(json.dumps({"gpu": {"fixed_bytes": {"context": 400 << 20}}}))
    model = speed.ModelRuns("mistral-7b", "fp16", (0.5,), 0)
    linears = 2 * (32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 32000)
    assert speed.budget(job, model, 0.5) == f"{math.ceil((560 * 2**20 + linears / 2) / 2**20)}MiB"
    assert speed.budget(job, model, 0) == "0"


def test_the_tests_of_a_report_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more">long</failure></testcase>'
        '<testcase classname="t" name="c"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    found = gpu_tests.counts(report)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert (found["failures"], found["why_skipped"]) == (["t.b: assert 1 == 2"], ["no GPU"])


def test_tests_that_hang_are_named() -> None:
    output = "collected 3\n\ntests/a.py::one PASSED   [ 33%]\ntests/a.py::two FAILED   [ 66%]\ntests/a.py::stuck "
    assert gpu_tests.so_far(output) == "1 passed, 1 failed, at last tests/a.py::stuck"
    assert gpu_tests.so_far("") == "0 passed, 0 failed, at last nothing"


# Multiplications against float64.


def half_values() -> Any:
    return Weights(DTYPES["fp16"]).tensor("w", (1 << 16, 1)).reshape(-1)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_wrong_column_shows(layout: Layout) -> None:
    case = Gemm("k", Matrix("m", 96, 80), WeightFormat.FP16, layout, 3, half_values())
    stored = np.tile(case.values, 2)[128 : 128 + 96 * 80].astype(np.float64)
    w = stored.reshape(96, 80) if layout is Layout.KN else stored.reshape(80, 96).T
    y = (case.x().astype(np.float64) @ w).astype(np.float32)
    assert case.error(y, 256) < 1e-6
    assert case.error(y, 258) > 1e-2
    y[2, 79] = np.nan
    assert case.error(y, 256) == float("inf")


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_read_as_their_kernels_read_them(bits: int) -> None:
    case = OwnBlocks("k", Matrix("m", 128, 48), WeightFormat.FP16, Layout.NK, 2, half_values(), bits)
    raw = case.values.view(np.uint8)
    numbers = raw[512 : 512 + 48 * 128 * bits // 8].reshape(48, -1).astype(int)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(48, 128)
    begin = 512 + 48 * 128 * bits // 8
    scales = raw[begin : begin + 48 * 2 * 2].view(np.float16).reshape(48, 2).astype(np.float64)
    w = (numbers - 2 ** (bits - 1)) * np.repeat(scales, 64, axis=1)
    np.testing.assert_array_equal(case.weight(np.arange(48), 512), w.T)
    assert case.weight_bytes == 48 * (128 * bits // 8 + 4)
    assert case.error((case.x().astype(np.float64) @ w.T).astype(np.float32), 512) < 1e-6


def test_our_own_kernels_are_among_the_cases_where_they_can_be_launched() -> None:
    job = a_job(Path(), "cuda")
    made = list(cases(WeightFormat.FP16, "cuBLAS", True, job.sizes.layer, (1, 2), half_values()))
    assert {type(case) for case in made} == {Gemm, OwnGemm, OwnBlocks}
    blocks = {"int8, blocks of 64", "int4, blocks of 64"}
    assert {case.weights for case in made} == {
        "fp16 KN",
        "fp16 NK",
        *blocks,
        *(f"{name}, x in int8" for name in blocks),
    }
    assert len(made) == 5 * 2 * 8
    assert {type(case) for case in cases(WeightFormat.FP32, "cuBLAS", True, job.sizes.layer, (1,), half_values())} == {
        Gemm
    }


# CUDA, emulated.


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
        monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, weight_format: True)
        numbers = dict.fromkeys(("major", "minor", "multiProcessorCount", "l2CacheSize", "asyncEngineCount"), 7)
        runtime = sys.modules["cupy.cuda.runtime"]
        monkeypatch.setattr(
            runtime, "getDeviceProperties", lambda ordinal: {"name": b"Emulated GPU", **numbers}, raising=False
        )


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    cupy = Emulated()
    cupy.install(monkeypatch)
    return cupy


def a_job(folder: Path, device: str) -> Job:
    return Job(device, "rehearsal", folder, folder, time.monotonic() + 60, "command", "commit")


def test_the_environment_of_a_cuda_device(emulated: Emulated, tmp_path: Path) -> None:
    found = environment.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert (found["gpu"]["name"], found["gpu"]["compute_capability"]) == ("Emulated GPU", "7.7")
    assert found["gpu"]["cuda_driver"] == 12_040
    text = "\n".join(environment.markdown(found))
    assert "compute capability 7.7" in text
    assert "int4: no device kernel" in text


def test_kernels_on_a_cuda_device_are_exact_cublas_and_our_own(
    emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of x in the matrices of one size: our kernels are compiled for the CPU, one after the other."""
    monkeypatch.setattr(CudaDevice, "kernels", CudaKernels(HostLauncher(), processors=4))
    monkeypatch.setattr(kernels, "matrices", lambda shape: (Matrix("m", 128, 48),))
    monkeypatch.setattr(gemm_cases, "matrices", kernels.matrices)
    found = kernels.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert set(found["not_measured"]) == {"int8", "int4"}
    assert all(reading["error"] < 2e-7 for reading in found["readings"])
    counts = Counter(reading["kernel"] for reading in found["readings"])
    assert counts == {"cuBLAS": 3 * 2 * 2, "CUDA C": 2 * (2 * 2 + 4)}
    assert emulated.blocks == {}
    assert "0 of 28 results are off" in "\n".join(kernels.markdown(found))


def test_a_kernel_that_fails_is_named_and_the_others_are_measured(emulated: Emulated, tmp_path: Path) -> None:
    """The emulation has no compiler."""
    found = kernels.run(a_job(tmp_path, "cuda"), lambda found: None)
    assert {reading["kernel"] for reading in found["readings"]} == {"cuBLAS"}
    assert "CUDA C, int4, blocks of 64, q_proj, 1 rows" in found["not_measured"]
    assert "- CUDA C, fp16 KN, q_proj, 1 rows and 79 more: not measured, " in "\n".join(kernels.markdown(found))


def test_the_roof_counts_bytes_read_and_bytes_written(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(roof, "perf_counter", lambda: next(now))  # every round takes a second
    device = CudaDevice()
    assert roof.roof_bytes_per_s(device, 4096)[0] == 2 * 8 * 4096
    assert all(size == 4096 for name, (*_, size) in emulated.calls if name == "device to device")
    device.close()


def test_copies_back_into_pageable_memory(emulated: Emulated, tmp_path: Path) -> None:
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
