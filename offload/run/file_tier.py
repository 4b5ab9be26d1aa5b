"""Host columns that stay in their files: multiplied piece by piece as the read-ahead ring brings them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from offload.host.base import HostBackend, HostColumns
from offload.plan.plan import LinearPlacement
from offload.plan.ram_tiers import PIECE_BYTES
from offload.spec.arrays import FloatArray, HostArray
from offload.spec.linear import ColumnRange, Layout
from offload.spec.stored_weight import StoredWeight
from offload.weights.disk_ring import Bytes, DiskRing, FilePart, split_rows
from offload.weights.mapped_file import file_of, offset_in_file


@dataclass(frozen=True)
class _FilePiece:
    """Stored rows of one Linear: some columns of [N, K], or all columns over some of K of [K, N].

    `weight` is these rows where they lie, `parts` what of it is in files, array by array.
    """

    placement: LinearPlacement
    rows: ColumnRange
    weight: StoredWeight
    parts: tuple[FilePart, ...]

    def columns(self, read: Sequence[Bytes]) -> HostColumns:
        """The piece as a weight of its own; `read` has the bytes of its parts."""
        linear, host = self.placement.linear, self.placement.host
        bytes_of = iter(read)
        arrays = tuple(
            next(bytes_of).view(array.dtype).reshape(array.shape) if file_of(array) is not None else array
            for array in self.weight.arrays
        )
        start, stop = (0, len(self.rows)) if linear.layout is Layout.NK else (host.start, host.stop)
        return HostColumns(replace(self.weight, arrays=arrays), start, stop, linear.activations)


class FileTier:
    """The Linears of a program whose host columns are tier FILE, by group, in running order."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[LinearPlacement]],
        weights: Mapping[str, StoredWeight],
        host: HostBackend,
        capacity_bytes: int,
    ) -> None:
        """Allocate the ring.

        `groups` are in running order; `weights` whole ones whose first arrays are mapped from files; the rest may be.
        """
        pieces = [piece for group in groups.values() for p in group for piece in _pieces(p, weights[p.linear.name])]
        self._ring = DiskRing([piece.parts for piece in pieces], capacity_bytes)
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
            self._multiply(piece, piece.columns(self._ring.arrays(number)), x, outputs[output])
            self._ring.release()

    def _multiply(self, piece: _FilePiece, columns: HostColumns, x: FloatArray, y: FloatArray) -> None:
        linear, host, rows = piece.placement.linear, piece.placement.host, piece.rows
        # Prepared anew every time, since what it keeps for the next would add up over thousands of pieces.
        work = self._host.group([columns])
        # The piece is a weight of its own with its own output; copying that is little beside reading the piece.
        if linear.layout is Layout.NK:
            part = np.empty((len(x), len(rows)), np.float32)
            work.multiply(x, [part])
            y[:, rows.start : rows.stop] = part
            return
        part = np.empty((len(x), linear.out_features), np.float32)
        work.multiply(np.ascontiguousarray(x[:, rows.start : rows.stop]), [part])
        if rows.start == 0:
            y[:, host.start : host.stop] = part[:, host.start : host.stop]
        else:
            y[:, host.start : host.stop] += part[:, host.start : host.stop]


def _pieces(placement: LinearPlacement, weight: StoredWeight) -> list[_FilePiece]:
    """The pieces of a Linear, each one read: stored rows, so that [K, N] is cut along K and sums are added up."""
    linear, arrays = placement.linear, weight.arrays
    rows = placement.host if linear.layout is Layout.NK else ColumnRange(0, linear.in_features)
    found = []
    for start, stop in split_rows(len(rows), sum(map(_row_bytes, arrays)), PIECE_BYTES):
        first, last = rows.start + start, rows.start + stop
        in_features = linear.in_features if linear.layout is Layout.NK else last - first
        stored = StoredWeight(weight.storage, in_features, tuple(array[first:last] for array in arrays))
        parts = tuple(_file_part(array, first, last) for array in arrays if file_of(array) is not None)
        found.append(_FilePiece(placement, ColumnRange(first, last), stored, parts))
    return found


def _file_part(array: HostArray, first: int, last: int) -> FilePart:
    """Locate rows `first <= row < last` of a whole mapped array in its file."""
    file, row_bytes = file_of(array), _row_bytes(array)
    assert file is not None
    start, nbytes = offset_in_file(array) + first * row_bytes, (last - first) * row_bytes
    return FilePart(file.path, start, nbytes, file.identity)


def _row_bytes(array: HostArray) -> int:
    return array.nbytes // len(array)
