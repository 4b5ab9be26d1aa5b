"""Which columns lie together on a device and what they take: arithmetic on placements.

Columns of Linears that read the same input and are stored alike lie side by side in one contiguous matrix, so
that one GEMM multiplies them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from offload.plan.plan import LinearPlacement
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import aligned
from offload.spec.linear import Activations, BlockFormat, ColumnRange, Layout, LinearSpec, WeightFormat

STAGING_BYTES = 64 * 2**20  # pinned memory that resident weights pass through at load
TILE_COLUMNS = 16  # columns go about in tiles: then rows of a [K, n] piece stay aligned for tensor cores


@dataclass(frozen=True)
class ColumnMatrix:
    """Columns of Linears of one group that are stored alike, side by side.

    [K, n] for KN and [n, K] for NK; in `blocks`, which are always by column, as DeviceBlocks has them.
    """

    segments: tuple[tuple[LinearSpec, ColumnRange], ...]
    blocks: BlockFormat | None = None

    @property
    def group(self) -> str:
        """The group whose input it is multiplied with."""
        return self.segments[0][0].group

    @property
    def format(self) -> WeightFormat:
        """Name the format of the elements."""
        return self.segments[0][0].format if self.blocks is None else self.blocks.format

    @property
    def layout(self) -> Layout:
        """The order of the matrix."""
        return self.segments[0][0].layout if self.blocks is None else Layout.NK

    @property
    def activations(self) -> Activations:
        """Name the precision of x when it meets blocks."""
        return self.segments[0][0].activations

    @property
    def in_features(self) -> int:
        """K."""
        return self.segments[0][0].in_features

    @cached_property
    def columns(self) -> int:
        """n, over all segments."""
        return sum(len(columns) for _, columns in self.segments)

    @property
    def column_bytes(self) -> int:
        """Bytes of one column."""
        if self.blocks is not None:
            return self.blocks.column_bytes(self.in_features)
        return self.in_features * self.format.itemsize_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        if self.layout is Layout.KN:
            return self.in_features, self.columns
        return self.columns, self.in_features

    @cached_property
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
        return ColumnMatrix(tuple(segments), self.blocks)

    def positions(self) -> list[int]:
        """The first column of every segment within the matrix."""
        positions = [0]
        for _, columns in self.segments[:-1]:
            positions.append(positions[-1] + len(columns))
        return positions


def resident_matrices(placements: Iterable[LinearPlacement]) -> tuple[ColumnMatrix, ...]:
    """The matrices that stay in device memory, one for each group and way of storing."""
    return _matrices((placement.linear, placement.resident, placement.linear.blocks) for placement in placements)


def streamed_matrices(placements: Iterable[LinearPlacement], prefill: bool = False) -> tuple[ColumnMatrix, ...]:
    """The matrices that cross the bus at every step, in the order of their groups' first Linears."""
    return _matrices((p.linear, p.streamed_in(prefill), p.host_blocks) for p in placements)


def split_columns(columns: int, column_bytes: int, slot_bytes: int) -> tuple[ColumnRange, ...]:
    """Cut `columns` into near equal ranges that each fit a slot. Raises ValueError if one column does not."""
    most = slot_bytes // column_bytes
    if most == 0:
        raise ValueError(f"a column of {column_bytes} bytes does not fit a slot of {slot_bytes} bytes")
    if columns > most > TILE_COLUMNS:
        most -= most % TILE_COLUMNS
    pieces = -(-columns // most)
    width = -(-columns // pieces)
    width = min(-(-width // TILE_COLUMNS) * TILE_COLUMNS, most)
    return tuple(ColumnRange(start, min(start + width, columns)) for start in range(0, columns, width))


def resident_bytes(placements: Iterable[LinearPlacement]) -> int:
    """Device memory for the resident columns, alignment included."""
    return sum(aligned(matrix.nbytes) for matrix in resident_matrices(placements))


def packed_stream_bytes(placements: Iterable[LinearPlacement]) -> int:
    """Pinned RAM for the columns that decode streams, alignment included."""
    return sum(aligned(matrix.nbytes) for matrix in streamed_matrices(placements))


def staging_bytes(placements: Iterable[LinearPlacement]) -> int:
    """Pinned RAM that resident columns pass through at load: two halves, each of at least one row or column."""
    matrices = resident_matrices(placements)
    if not matrices:
        return 0
    unit_bytes = max(m.column_bytes if m.blocks else m.nbytes // m.shape[0] for m in matrices)
    largest = max(matrix.nbytes for matrix in matrices)
    return 2 * aligned(max(unit_bytes, min(STAGING_BYTES // 2, largest)))


@dataclass(frozen=True)
class WorkingMemory:
    """The needs of steps besides weights: x and y, which are pinned RAM as well, and the scratch of multiplications."""

    x_bytes: int
    y_bytes: int
    scratch_bytes: int

    @property
    def pinned_bytes(self) -> int:
        """Pinned RAM."""
        return self.x_bytes + self.y_bytes

    @property
    def device_bytes(self) -> int:
        """Device memory."""
        return self.x_bytes + self.y_bytes + self.scratch_bytes


def working_memory(placements: Iterable[LinearPlacement], chunk_tokens: int) -> WorkingMemory:
    """Enough for any one group and up to `chunk_tokens` tokens."""
    placements = tuple(placements)
    groups: dict[str, ActivationRow] = {}
    scratch = 0
    # What prefill streams includes what decode does.
    for matrix in (*resident_matrices(placements), *streamed_matrices(placements, prefill=True)):
        row = groups.setdefault(matrix.group, ActivationRow(matrix.in_features, frozenset(), 0))
        groups[matrix.group] = row.with_matrix(matrix)
        need = scratch_bytes(chunk_tokens, matrix.columns, matrix.in_features, matrix.format, matrix.blocks)
        scratch = max(scratch, need)
    x_bytes = max((row.x_bytes(chunk_tokens) for row in groups.values()), default=0)
    y_bytes = max((row.y_bytes(chunk_tokens) for row in groups.values()), default=0)
    return WorkingMemory(x_bytes, y_bytes, scratch)


@dataclass(frozen=True)
class ActivationRow:
    """The memory of one token of a group: its input of `in_features`, and fp32 for every output column.

    The input is there once in fp32; or, on a device without kernels of its own, once in each of the float `formats`.
    """

    in_features: int
    formats: frozenset[WeightFormat]
    columns: int

    def with_matrix(self, matrix: ColumnMatrix) -> "ActivationRow":
        """The row that also serves `matrix`."""
        formats = self.formats | ({matrix.format} if matrix.blocks is None else set())
        return ActivationRow(self.in_features, formats, self.columns + matrix.columns)

    def x_bytes(self, tokens: int) -> int:
        """Bytes of the inputs, each aligned."""
        return aligned(tokens * self.in_features * 4) * max(1, len(self.formats))

    def y_bytes(self, tokens: int) -> int:
        """Bytes of the outputs, aligned."""
        return aligned(tokens * self.columns * 4)


def _matrices(parts: Iterable[tuple[LinearSpec, ColumnRange, BlockFormat | None]]) -> tuple[ColumnMatrix, ...]:
    alike: dict[tuple[str, BlockFormat | None, StrEnum, Layout | None], list[tuple[LinearSpec, ColumnRange]]] = {}
    for linear, columns, blocks in parts:
        if len(columns) == 0:
            continue
        if blocks is None and not linear.format.is_float:
            raise ValueError(f"{linear.name}: {linear.format} columns like these cannot be on a device")
        stored = (linear.format, linear.layout) if blocks is None else (linear.activations, None)
        alike.setdefault((linear.group, blocks, *stored), []).append((linear, columns))
    return tuple(ColumnMatrix(tuple(segments), blocks) for (_, blocks, *_), segments in alike.items())
