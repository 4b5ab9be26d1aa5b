"""The weight of a Linear: how it is stored, and the arrays that this takes, wherever they lie."""

from dataclasses import dataclass, replace
from math import prod

from offload.spec.arrays import HostArray
from offload.spec.linear import BlockFormat, Dense, Layout, Storage, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.weight_file import Bytes


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """W[K, N] in `storage`, whose arrays `arrays` are; `in_features` is K.

    Rows of a matrix of floats may lie apart, other arrays are contiguous; none need be aligned.
    """

    storage: Storage
    in_features: int
    arrays: tuple[StoredArray, ...]

    def __post_init__(self) -> None:
        wanted = self.storage.arrays(self.in_features, self.out_features)
        if len(self.arrays) != len(wanted):
            raise ValueError(f"{self.storage} has {len(wanted)} arrays, not {len(self.arrays)}")
        for array, spec in zip(self.arrays, wanted, strict=True):
            if array.dtype != spec.dtype or array.shape != spec.shape or 0 in array.shape:
                found = f"{array.dtype}{list(array.shape)}"
                raise ValueError(f"{spec.name} must be {spec.dtype} {list(spec.shape)}, not {found}")

    @classmethod
    def dense(cls, matrix: HostArray, weight_format: WeightFormat, layout: Layout) -> "StoredWeight":
        """A contiguous matrix of floats in memory, [K, N] or [N, K] as `layout` says."""
        in_features = matrix.shape[0 if layout is Layout.KN else -1]
        return cls(Dense(weight_format, layout), in_features, (StoredArray.of(matrix),))

    @classmethod
    def over(cls, memory: Bytes, storage: Storage, in_features: int, out_features: int) -> "StoredWeight":
        """A weight over contiguous bytes, its arrays one after another from the first byte on."""
        arrays, start = [], 0
        for spec in storage.arrays(in_features, out_features):
            stop = start + prod(spec.shape) * spec.dtype.itemsize
            arrays.append(StoredArray.at(memory[start:stop], spec.dtype, spec.shape))
            start = stop
        return cls(storage, in_features, tuple(arrays))

    @property
    def out_features(self) -> int:
        """N."""
        return self.arrays[0].shape[-1 if self.storage.layout is Layout.KN else 0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def in_file(self) -> bool:
        """Tell whether some of it lies in a file."""
        return any(array.in_file for array in self.arrays)

    @property
    def blocks(self) -> BlockFormat:
        """How it is block-quantised. Raises ValueError where it is not."""
        if isinstance(self.storage, Dense):
            raise ValueError(f"{self.storage.format} weights are not block-quantised")
        return self.storage

    def columns(self, start: int, stop: int) -> "StoredWeight":
        """Output columns `start <= n < stop`, which nobody reads for that. Raises ValueError for some not there."""
        if not 0 <= start < stop <= self.out_features:
            raise ValueError(f"columns {start}:{stop} are not among {self.out_features}")
        if self.storage.layout is Layout.KN:
            return replace(self, arrays=(self.arrays[0].columns(start, stop),))
        return replace(self, arrays=tuple(array.rows(start, stop) for array in self.arrays))
