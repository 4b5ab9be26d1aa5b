"""One suite for every device: simulated ones, CudaDevice on an emulated CuPy, and a GPU if there is one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from offload.devices.base import Device
from offload.devices.cuda.device import CudaDevice
from offload.devices.simulated.device import SimulatedDevice
from offload.errors import DeviceUnavailableError
from tests.device.emulated_cupy import EmulatedCupy
from tests.kernels.cuda.emulated_nvrtc import EmulatedNvrtc


@pytest.fixture(
    params=[
        "simulated",
        "simulated without kernels",
        "emulated cupy",
        "emulated cupy without kernels",
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    made: Device
    if "simulated" in request.param:
        made = SimulatedDevice(memory_bytes=1 << 30, own_kernels=request.param == "simulated")
    elif "emulated" in request.param:
        if request.param == "emulated cupy":
            EmulatedNvrtc().install(monkeypatch, EmulatedCupy(), tmp_path)
        else:
            EmulatedCupy().install(monkeypatch)
        # Opening takes its time on the CPU; tests/unit/devices/test_cuda.py does it in full.
        monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
        made = CudaDevice()
    else:
        try:
            made = CudaDevice()
        except DeviceUnavailableError as error:
            pytest.skip(str(error))
    yield made
    made.close()
