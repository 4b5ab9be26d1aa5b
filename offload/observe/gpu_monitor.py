"""Watches a GPU during a run, read from its driver ten times a second by a thread of its own."""

import threading
from dataclasses import dataclass, replace

from offload.devices.cuda.nvml import NvmlGpu
from offload.devices.cuda.vram_meter import VramMeter, VramSource

_PERIOD_S = 0.1
_MOST_WAIT_S = 1.0  # for the first sample


@dataclass(frozen=True)
class Gauge:
    """One metric: the last sample, the mean of all and the highest."""

    last: float
    mean: float
    peak: float
    samples: int = 1

    def with_sample(self, value: float) -> "Gauge":
        """The metric with one sample more."""
        samples = self.samples + 1
        return Gauge(value, self.mean + (value - self.mean) / samples, max(self.peak, value), samples)


@dataclass(frozen=True)
class GpuUse:
    """A GPU since the model was loaded; None for a metric that has no samples, and `not_told` why, by its name.

    `vram_bytes` is of this process, as its meter has it; the busy shares are from 0 to 1 and of all processes, and so
    is what the GPU receives and sends over the bus.
    """

    vram_bytes: int
    busy: Gauge | None = None
    memory_busy: Gauge | None = None
    received_bytes_per_s: Gauge | None = None
    sent_bytes_per_s: Gauge | None = None


class GpuMonitor:
    """Samples from `start` to `close`. Without NVML there is no thread, and nothing to tell but VRAM."""

    def __init__(self, vram: VramMeter, period_s: float = _PERIOD_S) -> None:
        self.vram = vram
        self._period_s = period_s
        self._gpu = vram.gpu
        self._use = GpuUse(vram.last_bytes)
        self._over = threading.Event()
        self._sampled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample."""
        if self._gpu is not None:
            # A daemon: a program that never closes the engine can end all the same.
            self._thread = threading.Thread(target=self._watch, args=(self._gpu,), name="gpu monitor", daemon=True)
            self._thread.start()

    def read(self) -> GpuUse:
        """Give what was seen so far, once that is something."""
        if self._thread is not None:
            self._sampled.wait(_MOST_WAIT_S)
        return replace(self._use, vram_bytes=self.vram.last_bytes)

    @property
    def not_told(self) -> dict[str, str]:
        """Give what is not known, or no more, and why: by the names of NvmlGpu's questions."""
        return {"NVML": self.vram.why_no_nvml} if self._gpu is None else dict(self._gpu.refusals)

    def close(self) -> None:
        """Take the last sample to its end and stop. Safe to call twice."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, gpu: NvmlGpu) -> None:
        while True:
            self._sample(gpu)
            self._sampled.set()
            if self._over.wait(self._period_s):
                return

    def _sample(self, gpu: NvmlGpu) -> None:
        if self.vram.source is not VramSource.CUDA:  # that is for the device's own thread to ask
            self.vram.used_bytes()
        busy, memory_busy = gpu.utilisation() or (None, None)
        received, sent = gpu.pcie_bytes_per_s() or (None, None)
        use = self._use
        # Replaced as a whole, so that readers need no lock.
        self._use = GpuUse(
            self.vram.last_bytes,
            _with(use.busy, busy),
            _with(use.memory_busy, memory_busy),
            _with(use.received_bytes_per_s, received),
            _with(use.sent_bytes_per_s, sent),
        )


def _with(gauge: Gauge | None, value: float | None) -> Gauge | None:
    if value is None:
        return gauge
    return Gauge(value, value, value) if gauge is None else gauge.with_sample(value)
