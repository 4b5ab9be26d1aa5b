"""One GPU asked through the real pynvml, against a stub of the driver, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_stub import build_stub

ROOT = Path(__file__).parents[3]
GIB = 1 << 30
_ASK = """
import json
from offload.devices.cuda.nvml import NvmlGpu

gpu = NvmlGpu("0000:01:00.0")
answers = [gpu.used_bytes(), gpu.process_bytes(), gpu.utilisation(), gpu.pcie_bytes_per_s()]
gpu.close()
print(json.dumps([answers, gpu.refusals]))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


def ask(stub: Path, **settings: str) -> list[Any]:
    environment = {"LD_LIBRARY_PATH": str(stub), "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, check=True)
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_everything_is_told(stub: Path) -> None:
    """9 MB/s in and 0.1 out, since PCIe is counted in kilobytes; shares, since the driver has per cents."""
    assert ask(stub, STUB_PROCESSES="listed") == [[GIB, 3 * GIB, [0.43, 0.21], [9e6, 1e5]], {}]


@pytest.mark.parametrize(
    ("processes", "why"),
    [("", "the driver does not list this process"), ("untold", "the driver does not tell it by process")],
)
def test_a_process_may_not_be_seen_or_not_be_told(stub: Path, processes: str, why: str) -> None:
    assert ask(stub, STUB_PROCESSES=processes) == [[GIB, None, [0.43, 0.21], [9e6, 1e5]], {"process memory": why}]


def test_every_question_may_be_refused(stub: Path) -> None:
    functions = "nvmlDeviceGetMemoryInfo nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetUtilizationRates"
    answers, refusals = ask(stub, STUB_REFUSES=f"{functions} nvmlDeviceGetPcieThroughput")
    assert answers == [None] * 4
    assert set(refusals.values()) == {"Not Supported"}
    assert len(refusals) == 4
