"""CUDA's numbers of GPUs and the driver's: a stub of libcuda that sees two of three GPUs, the other way round."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybrid.loading.target import look_through_driver
from offload.devices.cuda import nvml, ordinals
from offload.devices.cuda.ordinals import pci_bus_id
from offload.errors import DeviceUnavailableError

LIBCUDA = """
#include <stdlib.h>
#include <string.h>
static int started;
int cuInit(unsigned flags) { started = 1; return getenv("STUB_INIT") ? atoi(getenv("STUB_INIT")) : (int)flags; }
int cuDeviceGetCount(int *count) { *count = 2; return started ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = 70 + ordinal; return 0; }
int cuDeviceGetPCIBusId(char *name, int size, int device) {
    strncpy(name, device == 70 ? "0000:81:00.0" : "0000:01:00.0", size);
    return getenv("STUB_NO_PLACE") ? 101 : 0;
}
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build a stub of libcuda with")
    folder = tmp_path_factory.mktemp("libcuda")
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(LIBCUDA)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def test_an_ordinal_is_a_place_on_the_bus(libcuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [pci_bus_id(ordinal, libcuda) for ordinal in (0, 1)] == ["0000:81:00.0", "0000:01:00.0"]
    with pytest.raises(DeviceUnavailableError, match="no CUDA device 2: CUDA devices 0 to 1 are visible"):
        pci_bus_id(2, libcuda)
    monkeypatch.setenv("STUB_INIT", "100")  # cudaErrorNoDevice: all are hidden
    with pytest.raises(DeviceUnavailableError, match="no CUDA device is visible"):
        pci_bus_id(0, libcuda)


@pytest.mark.parametrize("setting", ["STUB_INIT", "STUB_NO_PLACE"])
def test_a_driver_that_does_not_tell_is_no_error(libcuda: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting, "999")
    assert pci_bus_id(0, libcuda) is None


def test_without_libcuda_nothing_is_known(tmp_path: Path) -> None:
    assert pci_bus_id(0, str(tmp_path / "libcuda.so.1")) is None


@pytest.mark.parametrize(
    ("place", "ordinal", "name"), [("0000:81:00.0", 0, "A100"), ("0000:01:00.0", 1, "T4"), (None, 0, "T4")]
)
def test_a_plan_is_for_the_gpu_that_cuda_will_use(
    monkeypatch: pytest.MonkeyPatch, place: str | None, ordinal: int, name: str
) -> None:
    """By its place on the bus where CUDA tells, else by the driver's number."""
    names = {"0000:01:00.0": "T4", "0000:41:00.0": "L4", "0000:81:00.0": "A100"}
    stub = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: list(names)[index],
        nvmlDeviceGetHandleByPciBusId=lambda place: place,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=1, total=2),
        nvmlDeviceGetName=names.__getitem__,
    )
    monkeypatch.setattr(nvml, "_start", lambda: stub)
    monkeypatch.setattr(ordinals, "pci_bus_id", lambda ordinal: place)
    facts = look_through_driver(ordinal, None)  # type: ignore[arg-type]
    assert (facts.name, facts.free_bytes, facts.total_bytes) == (name, 1, 2)
