"""Which columns lie together on a device and what they take: arithmetic on placements.

Columns of Linears that read the same input and are stored alike lie side by side in one contiguous matrix, so
that one GEMM multiplies them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from offload.devices.base import HostArray, aligned
from offload.plan import LinearPlacement
from offload.specs import ColumnRange, Layout, LinearSpec, WeightFormat

_TILE_COLUMNS = 16  # pieces begin at multiples of this: rows of a [K, n] piece stay aligned for tensor cores


@dataclass(frozen=True)
class ColumnMatrix:
    """Columns of Linears of one group, format and layout, side by side: [K, n] for KN, [n, K] for NK."""

    segments: tuple[tuple[LinearSpec, ColumnRange], ...]

    @property
    def group(self) -> str:
        """The group whose input it is multiplied with."""
        return self.segments[0][0].group

    @property
    def format(self) -> WeightFormat:
        """How the elements are stored."""
        return self.segments[0][0].format

    @property
    def layout(self) -> Layout:
        """The order of the matrix."""
        return self.segments[0][0].layout

    @property
    def in_features(self) -> int:
        """K."""
        return self.segments[0][0].in_features

    @property
    def columns(self) -> int:
        """n, over all segments."""
        return sum(len(columns) for _, columns in self.segments)

    @property
    def column_bytes(self) -> int:
        """Bytes of one column."""
        return self.in_features * self.format.itemsize_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        if self.layout is Layout.KN:
            return self.in_features, self.columns
        return self.columns, self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.columns * self.column_bytes

    def cut(self, part: ColumnRange) -> "ColumnMatrix":
        """The matrix of columns `part.start <= column < part.stop` of this one."""
        segments = []
        for (linear, columns), position in zip(self.segments, self.positions(), strict=True):
            start = columns.start + max(0, part.start - position)
            stop = min(columns.stop, columns.start + part.stop - position)
            if start < stop:
                segments.append((linear, ColumnRange(start, stop)))
        return ColumnMatrix(tuple(segments))

    def positions(self) -> list[int]:
        """The first column of every segment within the matrix."""
        positions = [0]
        for _, columns in self.segments[:-1]:
            positions.append(positions[-1] + len(columns))
        return positions

    def read_rows(self, weights: Mapping[str, HostArray], start: int, out: HostArray) -> None:
        """Write the stored rows from `start` on into `out`, as many as it has."""
        stop = start + len(out)
        for (linear, columns), position in zip(self.segments, self.positions(), strict=True):
            weight = weights[linear.name]
            if self.layout is Layout.KN:
                part = weight[start:stop, columns.start : columns.stop]
                out[:, position : position + len(columns)] = part
                continue
            first, last = max(start, position), min(stop, position + len(columns))
            if first < last:
                shift = columns.start - position
                out[first - start : last - start] = weight[first + shift : last + shift]


def resident_matrices(placements: Iterable[LinearPlacement]) -> tuple[ColumnMatrix, ...]:
    """The matrices that stay in device memory, one for each group, format and layout."""
    return _matrices((placement.linear, placement.resident) for placement in placements)


def streamed_matrices(placements: Iterable[LinearPlacement], prefill: bool = False) -> tuple[ColumnMatrix, ...]:
    """The matrices that cross the bus at every step, in the order of their groups' first Linears."""
    return _matrices((placement.linear, placement.streamed_in(prefill)) for placement in placements)


def split_columns(columns: int, column_bytes: int, slot_bytes: int) -> tuple[ColumnRange, ...]:
    """Cut `columns` into near equal ranges that each fit a slot. Raises ValueError if one column does not."""
    most = slot_bytes // column_bytes
    if most == 0:
        raise ValueError(f"a column of {column_bytes} bytes does not fit a slot of {slot_bytes} bytes")
    if columns > most > _TILE_COLUMNS:
        most -= most % _TILE_COLUMNS
    pieces = -(-columns // most)
    width = -(-columns // pieces)
    width = min(-(-width // _TILE_COLUMNS) * _TILE_COLUMNS, most)
    return tuple(ColumnRange(start, min(start + width, columns)) for start in range(0, columns, width))


def resident_bytes(placements: Iterable[LinearPlacement]) -> int:
    """Device memory for the resident columns, alignment included."""
    return sum(aligned(matrix.nbytes) for matrix in resident_matrices(placements))


def packed_stream_bytes(placements: Iterable[LinearPlacement]) -> int:
    """Pinned RAM for the columns that decode streams, alignment included."""
    return sum(aligned(matrix.nbytes) for matrix in streamed_matrices(placements))


def activation_bytes(placements: Iterable[LinearPlacement], chunk_tokens: int) -> int:
    """Device memory, and as much pinned RAM, for x and y of steps of up to `chunk_tokens` tokens."""
    x_bytes, y_bytes = activation_capacity(placements, chunk_tokens)
    return x_bytes + y_bytes


def activation_capacity(placements: Iterable[LinearPlacement], chunk_tokens: int) -> tuple[int, int]:
    """Bytes for x and bytes for y, each enough for any one group."""
    placements = tuple(placements)
    groups: dict[str, ActivationRow] = {}
    # What prefill streams includes what decode does.
    for matrix in (*resident_matrices(placements), *streamed_matrices(placements, prefill=True)):
        row = groups.setdefault(matrix.group, ActivationRow({}, 0))
        groups[matrix.group] = row.with_matrix(matrix)
    x_bytes = max((row.x_bytes(chunk_tokens) for row in groups.values()), default=0)
    y_bytes = max((row.y_bytes(chunk_tokens) for row in groups.values()), default=0)
    return x_bytes, y_bytes


@dataclass(frozen=True)
class ActivationRow:
    """What one token of a group takes: its input once in every format, and fp32 for every output column."""

    in_features: Mapping[WeightFormat, int]
    columns: int

    def with_matrix(self, matrix: ColumnMatrix) -> "ActivationRow":
        """The row that also serves `matrix`."""
        return ActivationRow({**self.in_features, matrix.format: matrix.in_features}, self.columns + matrix.columns)

    def x_bytes(self, tokens: int) -> int:
        """Bytes of the inputs, each aligned."""
        return sum(
            aligned(tokens * features * weight_format.itemsize_bytes)
            for weight_format, features in self.in_features.items()
        )

    def y_bytes(self, tokens: int) -> int:
        """Bytes of the outputs, aligned."""
        return aligned(tokens * self.columns * 4)


def _matrices(parts: Iterable[tuple[LinearSpec, ColumnRange]]) -> tuple[ColumnMatrix, ...]:
    alike: dict[tuple[str, WeightFormat, Layout], list[tuple[LinearSpec, ColumnRange]]] = {}
    for linear, columns in parts:
        if len(columns) == 0:
            continue
        if not linear.format.is_float:
            raise ValueError(f"{linear.name}: {linear.format} columns cannot be on a device")
        alike.setdefault((linear.group, linear.format, linear.layout), []).append((linear, columns))
    return tuple(ColumnMatrix(tuple(segments)) for segments in alike.values())
