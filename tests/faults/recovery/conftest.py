"""The demo model, and what plans and devices of its size need."""

import pytest

from hybrid.loading.planning import OpenedModel
from hybrid.loading.settings import DEMO_MODEL
from tests.device.emulated_cupy import EmulatedCupy
from tests.engines import open_settings


@pytest.fixture(scope="session")
def demo() -> OpenedModel:
    return open_settings(DEMO_MODEL)


@pytest.fixture
def fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that shrinks by less than a MiB, for a model of a few."""
    monkeypatch.setattr("offload.run.recovery.MIB", 16 << 10)
    monkeypatch.setattr("offload.run.recovery._UNKNOWN_BYTES", 64 << 10)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCupy:
    emulation = EmulatedCupy()
    emulation.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    return emulation
