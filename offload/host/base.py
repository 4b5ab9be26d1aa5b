"""The protocol of multiplication on the CPU, and what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offload.spec.arrays import FloatArray
from offload.spec.linear import Activations
from offload.spec.stored_weight import StoredWeight


@dataclass(frozen=True)
class HostColumns:
    """One Linear's share of the host work: output columns `start <= n < stop`, possibly none.

    `weight` is the whole weight. `activations` says how x is treated where that is block-quantised; else it means
    nothing.
    """

    weight: StoredWeight
    start: int
    stop: int
    activations: Activations = Activations.FLOAT

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.out_features


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
