"""Times multiplications on a device: arithmetic that the cost model and the simulated device share."""

from collections.abc import Mapping
from typing import Protocol

from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import BlockFormat, WeightFormat


class MultiplyRates(Protocol):
    """The rates of a device that multiplications depend on."""

    @property
    def vram_bytes_per_s(self) -> float: ...

    @property
    def flops_per_s(self) -> Mapping[str, float]: ...


def multiply_s(
    rates: MultiplyRates, stored: WeightFormat | BlockFormat, columns: int, in_features: int, rows: int
) -> float:
    """Seconds to multiply `rows` rows of x with columns in device memory, without launches: to read W, or to add up.

    More than MAX_ROWS rows meet block-quantised weights as fp16 panels, which are written before they are read.
    """
    elements = columns * in_features
    computed = WeightFormat.FP16 if isinstance(stored, BlockFormat) else stored
    flops_s = 2 * rows * elements / rates.flops_per_s[computed]
    if not isinstance(stored, BlockFormat):
        return max(elements * stored.itemsize_bytes / rates.vram_bytes_per_s, flops_s)
    blocks_s = columns * stored.column_bytes(in_features) / rates.vram_bytes_per_s
    if rows <= MAX_ROWS:
        return max(blocks_s, flops_s)
    panel_s = elements * WeightFormat.FP16.itemsize_bytes / rates.vram_bytes_per_s
    return blocks_s + panel_s + max(panel_s, flops_s)


def launches(stored: WeightFormat | BlockFormat, rows: int) -> int:
    """Launches that reading W takes: where it is expanded, that and the GEMM."""
    return 2 if isinstance(stored, BlockFormat) and rows > MAX_ROWS else 1
