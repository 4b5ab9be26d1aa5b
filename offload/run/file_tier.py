"""Host columns that stay in their files: multiplied piece by piece as the read-ahead ring brings them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from offload.host.base import HostBackend, HostColumns
from offload.plan.plan import LinearPlacement
from offload.plan.ram_tiers import PIECE_BYTES
from offload.spec.arrays import FloatArray
from offload.spec.linear import ColumnRange, Layout
from offload.storage.stored_weight import StoredWeight
from offload.storage.weight_file import Bytes
from offload.weights.disk_ring import DiskRing
from offload.weights.reads import split_rows


@dataclass(frozen=True)
class _FilePiece:
    """Stored rows of the host columns of one Linear: some columns of [N, K], or all over some of K of [K, N]."""

    placement: LinearPlacement
    rows: ColumnRange
    weight: StoredWeight

    def read(self, parts: Sequence[Bytes]) -> StoredWeight:
        """The piece in memory; `parts` has the bytes of each of its arrays that lies in a file."""
        bytes_of = iter(parts)
        arrays = [array.over(next(bytes_of)) if array.in_file else array for array in self.weight.arrays]
        return replace(self.weight, arrays=tuple(arrays))


class FileTier:
    """The Linears of a program whose host columns are tier FILE, by group, in running order."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[LinearPlacement]],
        weights: Mapping[str, StoredWeight],
        host: HostBackend,
        capacity_bytes: int,
    ) -> None:
        """Allocate the ring. `groups` are in running order; `weights` their host columns, in files."""
        pieces = [piece for group in groups.values() for p in group for piece in _pieces(p, weights[p.linear.name])]
        parts = [[array.file_range() for array in piece.weight.arrays if array.in_file] for piece in pieces]
        self._ring = DiskRing(parts, capacity_bytes)
        by_group: dict[str, list[tuple[int, _FilePiece]]] = {name: [] for name in groups}
        for number, piece in enumerate(pieces):
            by_group[piece.placement.linear.group].append((number, piece))
        self.groups = {
            name: FileGroup(self._ring, host, [p.linear.name for p in groups[name]], found)
            for name, found in by_group.items()
        }

    def start(self) -> None:
        """Begin to read ahead."""
        self._ring.start()

    def close(self) -> None:
        """Stop reading ahead."""
        self._ring.close()


class FileGroup:
    """The pieces of the Linears of one group; a `HostGroup`."""

    def __init__(
        self, ring: DiskRing, host: HostBackend, linears: Sequence[str], pieces: Sequence[tuple[int, _FilePiece]]
    ) -> None:
        """`pieces` with their numbers in the ring."""
        self._ring = ring
        self._host = host
        self._pieces = [(linears.index(piece.placement.linear.name), number, piece) for number, piece in pieces]

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises OffloadError when the file can no longer be read."""
        for output, number, piece in self._pieces:
            self._ring.acquire(number)
            _multiply(self._host, piece, piece.read(self._ring.arrays(number)), x, outputs[output])
            self._ring.release()


def _multiply(host: HostBackend, piece: _FilePiece, weight: StoredWeight, x: FloatArray, y: FloatArray) -> None:
    linear, rows, columns = piece.placement.linear, piece.rows, piece.placement.host
    # Prepared anew every time, since what it keeps for the next would add up over thousands of pieces.
    if weight.storage.layout is Layout.NK:
        group = host.group([HostColumns(weight, rows.start, linear.out_features, linear.activations)])
        group.multiply(x, [y])
        return
    part = np.empty((len(x), len(columns)), np.float32)
    group = host.group([HostColumns(weight, 0, len(columns), linear.activations)])
    group.multiply(np.ascontiguousarray(x[:, rows.start : rows.stop]), [part])
    if rows.start == 0:
        y[:, columns.start : columns.stop] = part
    else:
        y[:, columns.start : columns.stop] += part


def _pieces(placement: LinearPlacement, weight: StoredWeight) -> list[_FilePiece]:
    """The pieces of a Linear, each one read: stored rows, so that [K, N] is cut along K and sums are added up."""
    is_nk = weight.storage.layout is Layout.NK
    count, before = weight.arrays[0].shape[0], placement.host.start if is_nk else 0
    found = []
    for start, stop in split_rows(count, sum(array.row_stride for array in weight.arrays), PIECE_BYTES):
        arrays = tuple(array.rows(start, stop) for array in weight.arrays)
        part = StoredWeight(weight.storage, weight.in_features if is_nk else stop - start, arrays)
        found.append(_FilePiece(placement, ColumnRange(before + start, before + stop), part))
    return found
