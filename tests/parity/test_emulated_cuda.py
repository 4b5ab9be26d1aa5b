"""The whole path to a GPU, from `--cuda` to text, on an emulation of CuPy: what can be shown of it without one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import find_profile
from offload.devices.cuda.vram_meter import GRANULE_BYTES
from offload.spec.linear import WeightFormat
from tests.device.emulated_cupy import EmulatedCupy
from tests.engines import greedy, read_golden
from tests.kernels.cuda.emulated_nvrtc import EmulatedNvrtc
from tests.parity.test_golden_tokens import DEMO_GOLDEN


@pytest.mark.parametrize(("kernels", "tokens"), [(True, 4), (False, 20)])
@pytest.mark.parametrize("megabytes", [2.5, 64])
def test_cuda_gives_the_golden_tokens_within_its_budget(
    megabytes: float, kernels: bool, tokens: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With kernels of our own, which take their time on a CPU, and with cuBLAS alone."""
    if kernels:
        EmulatedNvrtc().install(monkeypatch, EmulatedCupy(), tmp_path)
    else:
        EmulatedCupy().install(monkeypatch)
    golden = read_golden(DEMO_GOLDEN)
    budget = f"{megabytes + _fixed_mib()}MiB"
    machine = _slow_cpu(tmp_path / "slow-cpu.json")
    with open_engine(RunSettings(DEMO_MODEL, cuda=budget, device="cuda", machine=str(machine))) as engine:
        plan = engine.plan
        assert plan.vram_bytes["weights"] > 0
        assert plan.total_vram_bytes <= plan.budget_bytes
        said = [note for note in plan.notes if "NVRTC cannot be imported" in note]
        assert len(said) == (0 if kernels else 1)
        host = sum(len(placement.host) for placement in plan.placements)
        assert (host == 0) == (megabytes > 10)
        ids, _ = greedy(engine, golden.prompt_ids, tokens)
    assert ids == golden.greedy_ids[:tokens]


def _slow_cpu(path: Path) -> Path:
    """A machine on which even the smallest Linear is worth a round trip."""
    profile = find_profile("generic-gpu")
    rates = {name: {1: 1e6} for name in WeightFormat}
    slow = replace(profile, cpu=replace(profile.cpu, multiply_bytes_per_s=rates))
    path.write_text(json.dumps(slow.to_json()))
    return path


def _fixed_mib() -> float:
    """Bytes that the emulated context and workspace take, and those kept for the driver."""
    from offload.devices.cuda.device import CudaDevice

    device = CudaDevice()
    fixed = (sum(device.fixed_bytes.values()) + 3 * GRANULE_BYTES) / (1 << 20)
    device.close()
    return fixed
