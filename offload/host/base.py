"""The protocol of multiplication on the CPU, and what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offload.spec.arrays import FloatArray, HostArray
from offload.spec.linear import Activations, Layout, WeightFormat
from offload.spec.quantised import QuantisedWeight


@dataclass(frozen=True)
class HostColumns:
    """One Linear's share of the host work: output columns `start <= n < stop`, possibly none.

    `weight` is the whole weight, [N, K] or [K, N] as `layout` says, in the format's storage dtype. Its rows
    are contiguous; its address need not be aligned. Of an int8 or int4 format it is a `QuantisedWeight`, and
    `activations` says how x is treated; for others that means nothing.
    """

    weight: HostArray | QuantisedWeight
    format: WeightFormat
    layout: Layout
    start: int
    stop: int
    activations: Activations = Activations.FLOAT

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.weight.shape[1 if self.layout is Layout.NK else 0])

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.weight.shape[0 if self.layout is Layout.NK else 1])


class HostGroup(Protocol):
    """Linears that read the same x."""

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """Write columns [start, stop) of each y[M, N_i] = x[M, K] @ W into `outputs[i]`, and no others.

        `x` and the outputs are float32 and C-contiguous and do not overlap. To be called from the thread that
        made the backend, and from no other. Raises ValueError for arrays that do not fit.
        """


class HostBackend(Protocol):
    """Something that multiplies on the CPU."""

    def group(self, columns: Sequence[HostColumns]) -> HostGroup:
        """Prepare Linears that read the same x; the weights must stay where they are."""
