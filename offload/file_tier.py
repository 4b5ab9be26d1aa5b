"""Host columns that stay in their files: multiplied piece by piece as the read-ahead ring brings them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offload.devices.base import HostArray
from offload.disk_stream import PIECE_BYTES, DiskRing, FilePart, split_rows
from offload.host_backend import HostBackend, HostColumns, HostGroup
from offload.kernels.host import FloatArray
from offload.plan import LinearPlacement
from offload.specs import ColumnRange, Layout


@dataclass(frozen=True)
class _Piece:
    """Stored rows of one Linear: some columns of [N, K], or all columns over some of K of [K, N]."""

    placement: LinearPlacement
    rows: ColumnRange
    part: FilePart

    @property
    def shape(self) -> tuple[int, int]:
        linear = self.placement.linear
        return len(self.rows), linear.in_features if linear.layout is Layout.NK else linear.out_features

    def columns(self, weight: HostArray) -> HostColumns:
        """The piece as a weight of its own, whose bytes are `weight`."""
        linear, host = self.placement.linear, self.placement.host
        start, stop = (0, len(self.rows)) if linear.layout is Layout.NK else (host.start, host.stop)
        stored = weight.view(linear.format.storage_dtype).reshape(self.shape)
        return HostColumns(stored, linear.format, linear.layout, start, stop)


class FileTier:
    """The Linears of a program whose host columns are tier FILE, by group, in running order."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[LinearPlacement]],
        weights: Mapping[str, HostArray],
        host: HostBackend,
        capacity_bytes: int,
    ) -> None:
        """Allocate the ring. `groups` are in running order, `weights` whole weights mapped from files."""
        pieces = [piece for group in groups.values() for p in group for piece in _pieces(p, weights[p.linear.name])]
        self._ring = DiskRing([piece.part for piece in pieces], capacity_bytes)
        multiplies: dict[str, list[_Multiply]] = {name: [] for name in groups}
        for number, piece in enumerate(pieces):
            work = host.group([piece.columns(self._ring.array(number))])
            multiplies[piece.placement.linear.group].append(_Multiply(number, piece, work))
        self.groups = {
            name: FileGroup(self._ring, [p.linear.name for p in groups[name]], found)
            for name, found in multiplies.items()
        }

    def start(self) -> None:
        """Begin to read ahead."""
        self._ring.start()

    def close(self) -> None:
        """Stop reading ahead."""
        self._ring.close()


@dataclass(frozen=True)
class _Multiply:
    number: int  # of the piece in the ring
    piece: _Piece
    work: HostGroup


class FileGroup:
    """The pieces of the Linears of one group; a `HostGroup`."""

    def __init__(self, ring: DiskRing, linears: Sequence[str], multiplies: Sequence[_Multiply]) -> None:
        self._ring = ring
        self._multiplies = [(linears.index(m.piece.placement.linear.name), m) for m in multiplies]

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises OffloadError when the file can no longer be read."""
        for output, multiply in self._multiplies:
            self._ring.acquire(multiply.number)
            _multiply(multiply, x, outputs[output])
            self._ring.release()


def _multiply(multiply: _Multiply, x: FloatArray, y: FloatArray) -> None:
    piece = multiply.piece
    linear, host, rows = piece.placement.linear, piece.placement.host, piece.rows
    # The piece is a weight of its own with its own output; copying that is little beside reading the piece.
    if linear.layout is Layout.NK:
        part = np.empty((len(x), len(rows)), np.float32)
        multiply.work.multiply(x, [part])
        y[:, rows.start : rows.stop] = part
        return
    part = np.empty((len(x), linear.out_features), np.float32)
    multiply.work.multiply(np.ascontiguousarray(x[:, rows.start : rows.stop]), [part])
    if rows.start == 0:
        y[:, host.start : host.stop] = part[:, host.start : host.stop]
    else:
        y[:, host.start : host.stop] += part[:, host.start : host.stop]


def _pieces(placement: LinearPlacement, weight: HostArray) -> list[_Piece]:
    """The pieces of a Linear, each one read: stored rows, so that [K, N] is cut along K and sums are added up."""
    assert isinstance(weight, np.memmap)
    assert weight.filename is not None
    linear = placement.linear
    row_bytes = weight.nbytes // weight.shape[0]
    rows = placement.host if linear.layout is Layout.NK else ColumnRange(0, linear.in_features)
    found = []
    for start, stop in split_rows(len(rows), row_bytes, PIECE_BYTES):
        first = rows.start + start
        offset = weight.offset + first * row_bytes
        part = FilePart(str(weight.filename), offset, (stop - start) * row_bytes)
        found.append(_Piece(placement, ColumnRange(first, rows.start + stop), part))
    return found
