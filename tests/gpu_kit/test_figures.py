"""The arithmetic of the GPU kit: overlap, shares, budgets and caps."""

import json
import math
from pathlib import Path

import pytest

from bench.gpu import speed
from bench.gpu.cap import _row
from bench.gpu.overlap import balanced, busy_shares, overlap
from hybrid.machine.profiles import find_profile
from offload.devices.base import Span
from offload.observe.timeline import Step
from tests.gpu_kit.jobs import a_job


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
