"""VRAM that a process takes: who is asked, what that says, and the budget it is held to."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from offload.devices.cuda.nvml import NvmlGpu
from offload.devices.cuda.vram_meter import GRANULE_BYTES, VramMeter
from offload.errors import DeviceUnavailableError, OverBudgetError
from tests.fake_nvml import MY_PID, OTHER_PID, FakeNvml, NVMLError, NVMLLibraryMismatchError

BUS = "0000:01:00.0"
OTHERS, CUDA_SAYS = 1_000_000, 5_555


@dataclass
class Gpu:
    """Bytes that this process takes of it: none until it has a context."""

    own_bytes: int = 0


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def nvml(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(lambda: gpu.own_bytes, OTHERS).install(monkeypatch)


def a_meter() -> VramMeter:
    return VramMeter(BUS, lambda: CUDA_SAYS)


def not_listed(nvml: FakeNvml) -> None:
    del nvml.pids[MY_PID]


def not_told(nvml: FakeNvml) -> None:
    nvml.pids[MY_PID] = False


def refuse(*questions: str) -> Callable[[FakeNvml], None]:
    return lambda nvml: nvml.refused.update(dict.fromkeys(questions, NVMLError(3)))


def an_old_driver(nvml: FakeNvml) -> None:
    nvml.refused["processes"] = NVMLLibraryMismatchError("does not match")


@pytest.mark.parametrize(
    ("change", "source", "used_bytes"),
    [
        (lambda nvml: None, "process", 300),
        (not_listed, "device", 300),
        (not_told, "device", 300),
        (refuse("processes"), "device", 300),
        (an_old_driver, "device", 300),
        (refuse("memory"), "process", 300),
        (refuse("memory", "processes"), "cuda", CUDA_SAYS),
        (refuse("init"), "cuda", CUDA_SAYS),
        (refuse("handle"), "cuda", CUDA_SAYS),
    ],
)
def test_the_most_certain_source_that_answers_is_asked(
    gpu: Gpu, nvml: FakeNvml, change: Callable[[FakeNvml], None], source: str, used_bytes: int
) -> None:
    change(nvml)
    meter = a_meter()
    gpu.own_bytes = 300
    assert (meter.used_bytes(), meter.source) == (used_bytes, source)
    meter.close()
    assert nvml.started == 0, "NVML is shut down as often as it is started"
    assert meter.used_bytes() == used_bytes, "the last reading stays"


def test_the_memory_of_others_counts_only_where_nothing_better_is_known(gpu: Gpu, nvml: FakeNvml) -> None:
    not_listed(nvml)
    nvml.pids[OTHER_PID] = True
    meter = a_meter()
    gpu.own_bytes = 300
    assert meter.used_bytes() == 300
    nvml.others_bytes += 70
    assert meter.used_bytes() == 370
    nvml.others_bytes = 0
    assert meter.used_bytes() == 0
    assert meter.peak_bytes == 370


def test_a_second_meter_of_a_process_counts_from_before_its_first_context(gpu: Gpu, nvml: FakeNvml) -> None:
    not_listed(nvml)
    first = a_meter()
    gpu.own_bytes = 300
    assert (first.used_bytes(), a_meter().used_bytes()) == (300, 300)


def test_a_source_that_falls_silent_is_not_changed(gpu: Gpu, nvml: FakeNvml) -> None:
    meter = a_meter()
    gpu.own_bytes = 300
    meter.used_bytes()
    refuse("processes")(nvml)
    gpu.own_bytes = 400
    assert (meter.used_bytes(), meter.peak_bytes, meter.source) == (300, 300, "process")


def test_a_budget_is_held_in_whole_granules(gpu: Gpu, nvml: FakeNvml) -> None:
    meter = a_meter()
    gpu.own_bytes = GRANULE_BYTES
    meter.check(1 << 40)
    meter.limit_bytes = 3 * GRANULE_BYTES
    meter.check(GRANULE_BYTES + 1)
    with pytest.raises(OverBudgetError) as error:
        meter.check(2 * GRANULE_BYTES + 1)
    assert (error.value.missing_bytes, error.value.pinned) == (GRANULE_BYTES, False)
    gpu.own_bytes = 3 * GRANULE_BYTES
    meter.check()
    gpu.own_bytes += 10
    with pytest.raises(OverBudgetError) as error:
        meter.check()
    assert error.value.missing_bytes == 10


def test_what_is_refused_is_asked_once_and_says_why(gpu: Gpu, nvml: FakeNvml) -> None:
    refuse("pcie", "utilisation")(nvml)
    not_listed(nvml)
    asked = NvmlGpu(BUS)
    gpu.own_bytes = 300
    for _ in range(3):
        assert (asked.utilisation(), asked.pcie_bytes_per_s(), asked.process_bytes()) == (None, None, None)
    assert asked.refusals == {
        "utilisation": "Not Supported",
        "PCIe throughput": "Not Supported",
        "process memory": "the driver does not list this process",
    }
    assert [nvml.asked.count(question) for question in ("utilisation", "pcie", "processes")] == [1, 1, 1]
    asked.close()


def test_without_a_gpu_of_this_number_nvml_is_shut_down_again(nvml: FakeNvml) -> None:
    refuse("handle")(nvml)
    with pytest.raises(DeviceUnavailableError, match=r"does not tell about GPU 0000:01:00\.0 \(Not Supported\)"):
        NvmlGpu(BUS)
    assert nvml.started == 0
