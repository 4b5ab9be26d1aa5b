"""The protocol of multiplication on the CPU, and what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offload.spec.arrays import FloatArray
from offload.spec.linear import Activations
from offload.storage.stored_weight import StoredWeight


@dataclass(frozen=True)
class HostColumns:
    """One Linear's share of the host work: `weight` is some columns of it, from column `start` of y on.

    `activations` says how x is treated where the weight is block-quantised; else it means nothing.
    """

    weight: StoredWeight
    start: int
    out_features: int  # N, of y
    activations: Activations = Activations.FLOAT

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.in_features

    @property
    def stop(self) -> int:
        """The column of y behind them."""
        return self.start + self.weight.out_features


class HostGroup(Protocol):
    """Linears that read the same x."""

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """Write columns [start, stop) of each y[M, N_i], which are x[M, K] @ `weight`, and no others of `outputs[i]`.

        `x` and the outputs are float32 and C-contiguous and do not overlap. To be called from the thread that
        made the backend, and from no other. Raises ValueError for arrays that do not fit.
        """


class HostBackend(Protocol):
    """Something that multiplies on the CPU."""

    def group(self, columns: Sequence[HostColumns]) -> HostGroup:
        """Prepare Linears that read the same x; the weights must stay where they are."""
