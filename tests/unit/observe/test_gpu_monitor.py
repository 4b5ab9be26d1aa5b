"""The thread that watches a GPU: what it adds up, what it leaves out, and that it ends."""

import threading
from collections.abc import Callable

import pytest

from offload.devices.cuda.vram_meter import VramMeter
from offload.observe.gpu_monitor import Gauge, GpuMonitor
from tests.fake_nvml import FakeNvml, NVMLError

BUS = "0000:01:00.0"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(lambda: 300).install(monkeypatch)


def a_monitor() -> GpuMonitor:
    meter = VramMeter(BUS, lambda: pytest.fail("CUDA is for the thread of the device"))
    return GpuMonitor(meter, period_s=0.001)


def run_until(monitor: GpuMonitor, nvml: FakeNvml, count: int, question: str = "memory") -> None:
    """Let the thread ask so often."""
    reached = threading.Event()
    ask = nvml.own_bytes

    def own_bytes() -> int:
        if nvml.asked.count(question) >= count:
            reached.set()
        return ask()

    nvml.own_bytes = own_bytes
    monitor.start()
    assert reached.wait(10)
    monitor.close()
    nvml.own_bytes = ask


def samples(monitor: GpuMonitor, change: Callable[[int], None], count: int) -> None:
    assert monitor.vram.gpu is not None
    for number in range(count):
        change(number)
        monitor._sample(monitor.vram.gpu)


def test_means_and_peaks(nvml: FakeNvml) -> None:
    monitor = a_monitor()
    own_bytes = [300]
    nvml.own_bytes = lambda: own_bytes[0]

    def change(number: int) -> None:
        nvml.busy, nvml.kilobytes_per_s[1] = [(10, 4_000), (60, 8_000), (20, 0)][number]
        own_bytes[0] = [300, 900, 500][number]

    samples(monitor, change, 3)
    use = monitor.read()
    assert use.busy is not None
    assert use.busy == Gauge(0.2, pytest.approx(0.3), 0.6, 3)  # type: ignore[arg-type]
    assert use.memory_busy == Gauge(0.2, 0.2, 0.2, 3)
    assert use.received_bytes_per_s == Gauge(0.0, 4e6, 8e6, 3)
    assert use.sent_bytes_per_s == Gauge(1e5, 1e5, 1e5, 3)
    assert (use.vram_bytes, monitor.vram.peak_bytes) == (500, 900)
    assert monitor.not_told == {}


@pytest.mark.parametrize(
    ("question", "missing", "said"),
    [
        ("utilisation", {"busy", "memory_busy"}, {"utilisation": "Not Supported"}),
        ("pcie", {"received_bytes_per_s", "sent_bytes_per_s"}, {"PCIe throughput": "Not Supported"}),
        ("memory", set(), {"memory": "Not Supported"}),
    ],
)
def test_a_metric_that_is_not_told_leaves_the_others(
    nvml: FakeNvml, question: str, missing: set[str], said: dict[str, str]
) -> None:
    nvml.refused[question] = NVMLError(3)
    monitor = a_monitor()
    samples(monitor, lambda number: None, 2)
    metrics = ("busy", "memory_busy", "received_bytes_per_s", "sent_bytes_per_s")
    assert {name for name in metrics if getattr(monitor.read(), name) is None} == missing
    assert monitor.not_told == said
    assert monitor.read().vram_bytes == 300


def test_a_metric_that_ends_keeps_what_it_had(nvml: FakeNvml) -> None:
    monitor = a_monitor()
    samples(monitor, lambda number: nvml.refused.update({"pcie": NVMLError(15)} if number else {}), 3)
    use = monitor.read()
    assert use.received_bytes_per_s == Gauge(9e6, 9e6, 9e6, 1)
    assert use.busy is not None
    assert use.busy.samples == 3
    assert monitor.not_told == {"PCIe throughput": "error 15"}


def test_the_thread_samples_until_it_is_closed(nvml: FakeNvml) -> None:
    monitor = a_monitor()
    run_until(monitor, nvml, 5, "utilisation")
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu monitor"]
    asked = len(nvml.asked)
    monitor.close()
    monitor.vram.close()
    assert (len(nvml.asked), nvml.started) == (asked, 0)
    assert monitor.read().vram_bytes == 300


def test_without_nvml_there_is_no_thread(nvml: FakeNvml) -> None:
    nvml.refused["init"] = NVMLError(9)
    monitor = a_monitor()
    monitor.start()
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu monitor"]
    assert monitor.not_told == {"NVML": "no NVIDIA driver found (error 9)"}
    monitor.close()


def test_what_only_cuda_can_say_is_not_asked_in_the_thread(nvml: FakeNvml) -> None:
    nvml.refused |= dict.fromkeys(("processes", "memory"), NVMLError(3))
    monitor = a_monitor()
    samples(monitor, lambda number: None, 2)
    assert monitor.read().busy is not None
