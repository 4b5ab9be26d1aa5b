"""The rates of a simulated device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from offload.machine.profile import GpuRates
from offload.plan.multiply_time import launches, multiply_s
from offload.spec.linear import BlockFormat, WeightFormat


def same_rate(flops_per_s: float) -> dict[str, float]:
    """A GEMM's rate that is the same for every format of floats."""
    return {str(weight_format): flops_per_s for weight_format in WeightFormat if weight_format.is_float}


@dataclass(frozen=True)
class SimulatedRates:
    """The rates that modelled times are made of."""

    copy_bytes_per_s: float = 12e9  # host to device
    copy_back_bytes_per_s: float = 12e9  # device to host
    copy_latency_s: float = 10e-6
    vram_bytes_per_s: float = 300e9
    flops_per_s: Mapping[str, float] = field(default_factory=lambda: same_rate(20e12))
    launch_s: float = 5e-6
    wait_s: float = 0.0  # from the end of what the host waits for until the host goes on

    @classmethod
    def of(cls, gpu: GpuRates) -> "SimulatedRates":
        """Those of a device profile. A round trip is a copy each way, and the wait takes what these two leave of it."""
        return cls(
            copy_bytes_per_s=gpu.bus_bytes_per_s,
            copy_back_bytes_per_s=gpu.bus_back_bytes_per_s,
            copy_latency_s=gpu.copy_s,
            vram_bytes_per_s=gpu.vram_bytes_per_s,
            flops_per_s=gpu.flops_per_s,
            launch_s=gpu.launch_s,
            wait_s=max(0.0, gpu.round_trip_s - 2 * gpu.copy_s),
        )

    def copy_s(self, nbytes: int) -> float:
        """Seconds of a copy to the device."""
        return self.copy_latency_s + nbytes / self.copy_bytes_per_s

    def copy_back_s(self, nbytes: int) -> float:
        """Seconds of a copy to the host."""
        return self.copy_latency_s + nbytes / self.copy_back_bytes_per_s

    def multiply_s(self, stored: WeightFormat | BlockFormat, columns: int, in_features: int, rows: int) -> float:
        """Seconds of a multiplication, launches included."""
        return self.launch_s * launches(stored, rows) + multiply_s(self, stored, columns, in_features, rows)
