"""CuPy and NVRTC in front of the shim."""

from pathlib import Path

import pytest

from tests.device.emulated_cupy import EmulatedCupy
from tests.kernels.cuda.emulated_nvrtc import Emulated, EmulatedNvrtc


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Emulated:
    """CuPy with NVRTC, and a home folder of its own."""
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    made = Emulated(EmulatedCupy(), EmulatedNvrtc())
    made.nvrtc.install(monkeypatch, made.cupy, tmp_path)
    return made
