"""The weight of a Linear: how it is stored, and the arrays that this takes."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from offload.spec.arrays import HostArray
from offload.spec.linear import BlockFormat, Dense, Layout, Storage, WeightFormat


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """W[K, N] in `storage`, whose arrays `arrays` are; `in_features` is K.

    Rows of a matrix of floats may lie apart, other arrays are C-contiguous; none need be aligned.
    """

    storage: Storage
    in_features: int
    arrays: tuple[HostArray, ...]

    def __post_init__(self) -> None:
        wanted = self.storage.arrays(self.in_features, self.out_features)
        if len(self.arrays) != len(wanted):
            raise ValueError(f"{self.storage} has {len(wanted)} arrays, not {len(self.arrays)}")
        for array, spec in zip(self.arrays, wanted, strict=True):
            if array.dtype != spec.dtype or array.shape != spec.shape or 0 in array.shape:
                found = f"{array.dtype}{list(array.shape)}"
                raise ValueError(f"{spec.name} must be {spec.dtype} {list(spec.shape)}, not {found}")
            rows_apart = array.ndim == 2 and isinstance(self.storage, Dense) and array[0].flags.c_contiguous
            if not array.flags.c_contiguous and not rows_apart:
                raise ValueError(f"{spec.name} must be contiguous, not strided by {list(array.strides)} bytes")

    @classmethod
    def dense(cls, matrix: HostArray, weight_format: WeightFormat, layout: Layout) -> "StoredWeight":
        """A matrix of floats, [K, N] or [N, K] as `layout` says."""
        in_features = matrix.shape[0 if layout is Layout.KN else -1]
        return cls(Dense(weight_format, layout), in_features, (matrix,))

    @classmethod
    def over(
        cls, memory: npt.NDArray[np.uint8], storage: Storage, in_features: int, out_features: int
    ) -> "StoredWeight":
        """A weight over contiguous bytes, its arrays one after another from the first byte on."""
        arrays, start = [], 0
        for spec in storage.arrays(in_features, out_features):
            stop = start + prod(spec.shape) * spec.dtype.itemsize
            arrays.append(memory[start:stop].view(spec.dtype).reshape(spec.shape))
            start = stop
        return cls(storage, in_features, tuple(arrays))

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.arrays[0].shape[-1 if self.storage.layout is Layout.KN else 0])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def blocks(self) -> BlockFormat:
        """How it is block-quantised. Raises ValueError where it is not."""
        if isinstance(self.storage, Dense):
            raise ValueError(f"{self.storage.format} weights are not block-quantised")
        return self.storage

    def columns(self, start: int, stop: int) -> "StoredWeight":
        """Output columns `start <= n < stop`, without a copy. Raises ValueError for a range that is not there."""
        if not 0 <= start < stop <= self.out_features:
            raise ValueError(f"columns {start}:{stop} are not among {self.out_features}")
        if self.storage.layout is Layout.KN:
            return StoredWeight(self.storage, self.in_features, (self.arrays[0][:, start:stop],))
        return StoredWeight(self.storage, self.in_features, tuple(array[start:stop] for array in self.arrays))
