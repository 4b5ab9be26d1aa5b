"""Describes a GPU that was watched while it worked, for people and programs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from offload.spec.units import format_bytes

if TYPE_CHECKING:
    from hybrid.machine.memory import MemoryUse
    from offload.observe.gpu_monitor import Gauge, GpuMonitor, GpuUse

SOURCES = {  # of the VRAM peak, by VramSource and what stands for it
    "process": "this process, NVML",
    "device": "rise of the whole GPU, NVML",
    "cuda": "whole GPU, CUDA",
    "modelled": "modelled",
    "plan": "planned",
}


def vram_text(memory: "MemoryUse") -> str:
    """The peak, the budget, and who says so."""
    peak, budget = format_bytes(memory["vram_peak_bytes"]), format_bytes(memory["vram_budget_bytes"])
    return f"VRAM peak {peak} of {budget} ({SOURCES[memory['vram_peak_source']]})"


def now_text(use: "GpuUse") -> str:
    """The last samples, those that there are."""
    parts = [f"VRAM {format_bytes(use.vram_bytes)}"]
    if use.busy is not None:
        parts.append(f"GPU {use.busy.last:.0%} busy")
    if use.received_bytes_per_s is not None and use.sent_bytes_per_s is not None:
        received, sent = use.received_bytes_per_s.last, use.sent_bytes_per_s.last
        parts.append(f"bus {format_bytes(received)}/s in, {format_bytes(sent)}/s out")
    return " · ".join(parts)


def summary_text(monitor: "GpuMonitor") -> str:
    """Means and peaks since the model was loaded, and what could not be told."""
    use = monitor.read()
    parts = [
        _share("GPU", use.busy, "busy"),
        _share("its memory", use.memory_busy, "busy"),
        _bytes_per_s("bus in", use.received_bytes_per_s),
        _bytes_per_s("out", use.sent_bytes_per_s),
        *(f"{what} not told ({why})" for what, why in monitor.not_told.items()),
    ]
    return " · ".join(part for part in parts if part)


def gpu_json(monitor: "GpuMonitor | None") -> dict[str, Any] | None:
    """The same for programs, None without a GPU. Each metric is null or a `Gauge`; `not_told` has the reasons."""
    if monitor is None:
        return None
    metrics = asdict(monitor.read())
    del metrics["vram_bytes"]  # that is with the other memory
    return {**metrics, "not_told": monitor.not_told}


def _share(what: str, gauge: "Gauge | None", word: str) -> str:
    return f"{what} {gauge.mean:.0%} {word}, at most {gauge.peak:.0%}" if gauge else ""


def _bytes_per_s(what: str, gauge: "Gauge | None") -> str:
    return f"{what} {format_bytes(gauge.mean)}/s, at most {format_bytes(gauge.peak)}/s" if gauge else ""
