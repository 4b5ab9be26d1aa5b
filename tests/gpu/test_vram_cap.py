"""The budget on a real GPU, as measured there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import find_profile
from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceUnavailableError
from offload.spec.linear import WeightFormat
from offload.spec.units import MIB


def test_what_is_measured_is_within_the_budget(tmp_path: Path) -> None:
    """On a machine whose CPU is said to be slow, so that the small model goes to the GPU."""
    try:
        device = CudaDevice()
    except DeviceUnavailableError as error:
        pytest.skip(f"no CUDA device: {error}")
    budget_bytes = device.vram.used_bytes() + 256 * MIB
    device.close()
    profile = find_profile("generic-gpu")
    rates = {name: {1: 1e6} for name in WeightFormat}
    machine = tmp_path / "slow-cpu.json"
    machine.write_text(json.dumps(replace(profile, cpu=replace(profile.cpu, multiply_bytes_per_s=rates)).to_json()))
    settings = RunSettings(DEMO_MODEL, cuda=f"{budget_bytes / MIB}MiB", device="cuda", machine=str(machine))
    with open_engine(settings) as engine:
        assert engine.plan.vram_bytes["weights"] > 0
        engine.prefill([1, 2, 3])
        for token_id in range(20):
            engine.decode(token_id + 3)
        memory = engine.memory()
    assert 0 < memory["vram_bytes"] <= memory["vram_peak_bytes"]
    if memory["vram_peak_source"] == "process":
        assert memory["vram_peak_bytes"] <= memory["vram_budget_bytes"]
