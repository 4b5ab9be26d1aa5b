"""Text about a GPU that was watched, by the figures."""

from typing import Any

import pytest

from hybrid.show.gpu_text import SOURCES, gpu_json, now_text, summary_text, vram_text
from offload.devices.cuda.vram_meter import VramMeter, VramSource
from offload.observe.gpu_monitor import Gauge, GpuMonitor, GpuUse
from offload.spec.units import GIB, MIB
from tests.fake_nvml import FakeNvml, NVMLError

BUSY = Gauge(0.43, 0.4, 0.98, 7)
IN, OUT = Gauge(10.1 * GIB, 9.5 * GIB, 12 * GIB, 7), Gauge(20 * MIB, 18 * MIB, 30 * MIB, 7)


def monitor(use: GpuUse, refusals: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> GpuMonitor:
    FakeNvml().install(monkeypatch)
    made = GpuMonitor(VramMeter("0000:01:00.0", lambda: 0))
    made._use = use
    assert made.vram.gpu is not None
    made.vram.gpu.refusals |= refusals
    return made


@pytest.mark.parametrize("source", [*SOURCES])
def test_a_peak_is_told_with_its_source(source: str) -> None:
    text = vram_text({"vram_peak_bytes": 6 * MIB, "vram_budget_bytes": GIB, "vram_peak_source": source})
    assert text == f"VRAM peak 6.00 MiB of 1.00 GiB ({SOURCES[source]})"


def test_every_source_has_words() -> None:
    assert {str(source) for source in VramSource} < SOURCES.keys()


def test_the_line_while_it_runs() -> None:
    use = GpuUse(5 * GIB, BUSY, None, IN, OUT)
    assert now_text(use) == "VRAM 5.00 GiB · GPU 43% busy · bus 10.10 GiB/s in, 20.00 MiB/s out"
    assert now_text(GpuUse(5 * GIB)) == "VRAM 5.00 GiB"


def test_the_summary_has_means_and_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    use = GpuUse(5 * GIB, BUSY, BUSY, IN, OUT)
    assert summary_text(monitor(use, {}, monkeypatch)) == (
        "GPU 40% busy, at most 98% · its memory 40% busy, at most 98% · bus in 9.50 GiB/s, at most 12.00 GiB/s"
        " · out 18.00 MiB/s, at most 30.00 MiB/s"
    )
    partly = monitor(GpuUse(0, BUSY), {"PCIe throughput": "Not Supported"}, monkeypatch)
    assert summary_text(partly) == "GPU 40% busy, at most 98% · PCIe throughput not told (Not Supported)"


def test_programs_get_null_for_what_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    busy: dict[str, Any] = {"last": 0.43, "mean": 0.4, "peak": 0.98, "samples": 7}
    made = gpu_json(monitor(GpuUse(5, BUSY), {"PCIe throughput": "why"}, monkeypatch))
    assert made == {
        "busy": busy,
        "memory_busy": None,
        "received_bytes_per_s": None,
        "sent_bytes_per_s": None,
        "not_told": {"PCIe throughput": "why"},
    }
    assert gpu_json(None) is None


def test_without_nvml_the_reason_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml().install(monkeypatch).refused["init"] = NVMLError(9)
    made = GpuMonitor(VramMeter("0000:01:00.0", lambda: 0))
    assert summary_text(made) == "NVML not told (no NVIDIA driver found (error 9))"
