"""Rounds shares to whole tiles of columns, spread evenly over the layers: `ModelShares` -> `PlacedModel`.

A plan is found by trying many, so what they have in common is worked out once, and each trial looks at Linears that
are placed alike together.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from offload.plan.memory import fixed_ram_bytes
from offload.plan.packing import TILE_COLUMNS, staging_bytes, working_memory
from offload.plan.placed_model import PlacedModel
from offload.plan.plan import LinearPlacement
from offload.plan.ram_tiers import keep_in_ram
from offload.plan.request import CHUNK_TOKENS, PlanRequest
from offload.plan.shares import Fractions, ModelShares
from offload.spec.arrays import aligned
from offload.spec.linear import ColumnRange, LinearSpec
from offload.spec.units import counted

Counts = npt.NDArray[np.int64]


class Placer:
    """Places the Linears of a request, for as many shares as are tried."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        linears = request.linears
        self.count = len(linears)
        self._columns: Counts = np.array([linear.out_features for linear in linears], np.int64)
        self._movable = np.array([request.movable(linear) for linear in linears], bool)
        self._streamable = np.array([request.streamable(linear) for linear in linears], bool)
        self._prefill_streamable = np.array([request.prefill_streamable(linear) for linear in linears], bool)
        self.sorts = sorts_of(linears)
        self._numbers: Counts = np.array(_numbers(self.sorts), np.int64)
        groups: dict[str, list[int]] = {}
        for number, linear in enumerate(linears):
            groups.setdefault(linear.group, []).append(number)
        self.groups = tuple(tuple(members) for members in groups.values())

    @property
    def any_movable(self) -> bool:
        """Tell whether any Linear may be on the device."""
        return bool(self._movable.any())

    @property
    def any_streamable(self) -> bool:
        """Tell whether any column may be streamed."""
        return bool(self._streamable.any())

    @property
    def any_prefill_streamable(self) -> bool:
        """Tell whether prefill may stream host columns at all."""
        return self.request.pinned_limit_bytes is None and bool(self._prefill_streamable.any())

    def streaming_all(self, shares: ModelShares) -> ModelShares:
        """The shares with all columns streamed in prefill that may be."""
        return shares.with_prefill(np.where(self._prefill_streamable, 1.0, 0.0))

    def where_prefill_streams(self, parts: Fractions) -> Fractions:
        """The parts of the Linears whose host columns prefill may stream, 0 for the others."""
        return np.where(self._prefill_streamable, parts, 0.0)

    def place(self, shares: ModelShares) -> PlacedModel:
        """Round shares to tiles. Linears that are alike differ by a tile at most, the larger ones spread evenly.

        Host columns beyond the RAM budget are left in their files.
        """
        model = self.in_ram(shares)
        budget_bytes = self.request.ram_budget_bytes
        if budget_bytes is None or self._ram_is_plenty:
            return model
        rows = keep_in_ram(model.rows, fixed_ram_bytes(self.request.other_ram_bytes, model), budget_bytes)
        return model if rows == model.rows else PlacedModel.tallied(self.request.linears, rows, self.groups)

    def in_ram(self, shares: ModelShares) -> PlacedModel:
        """The same with all host columns in RAM, whether or not it holds them."""
        resident = np.where(self._movable, self._tiles(shares.resident), 0)
        decode, prefill = (
            np.where(self._streamable, self._tiles(shares.resident + more), 0)
            for more in (shares.streamed, shares.prefill)
        )
        decode = np.maximum(resident, decode)
        prefill = np.maximum(decode, prefill)
        made: dict[tuple[int, ...], LinearPlacement] = {}
        rows = []
        stops = zip(self.sorts, resident.tolist(), decode.tolist(), prefill.tolist(), strict=True)
        for linear, key in zip(self.request.linears, stops, strict=True):
            if key not in made:
                made[key] = self._placement(linear, *key[1:])
            rows.append(made[key])
        return PlacedModel.tallied(self.request.linears, rows, self.groups)

    @cached_property
    def whole(self) -> PlacedModel:
        """Every column resident that may be, and all others in RAM."""
        return self.in_ram(ModelShares.equal(self.count, 1.0))

    @cached_property
    def _ram_is_plenty(self) -> bool:
        """Tell whether the RAM budget holds any placement, so that none has to be counted."""
        assert self.request.ram_budget_bytes is not None
        whole = self.whole
        # Every column at once as a host and as a streamed one; x in three formats.
        weights = sum(row.linear.weight_bytes + _kept_bytes(row) + aligned(_kept_bytes(row)) for row in whole.rows)
        steps = 3 * working_memory(whole.distinct, CHUNK_TOKENS).pinned_bytes + staging_bytes(whole.distinct)
        return weights + steps + sum(self.request.other_ram_bytes.values()) <= self.request.ram_budget_bytes

    def _tiles(self, shares: Fractions) -> Counts:
        """Whole tiles in a share of each Linear's columns.

        Together, those with numbers 0 to n among those alike have the whole tiles of n + 1 times the share.
        """
        tiles = self._columns * shares / TILE_COLUMNS
        more = np.floor((self._numbers + 1) * tiles) - np.floor(self._numbers * tiles)
        rounded = np.minimum(self._columns, more.astype(np.int64) * TILE_COLUMNS)
        return np.where(shares >= 1.0, self._columns, rounded)

    def _placement(self, linear: LinearSpec, resident: int, decode: int, prefill: int) -> LinearPlacement:
        request, columns = self.request, linear.out_features
        reason = linear.host_only_reason or request.unsupported.get(linear.format, "")
        return LinearPlacement(
            linear=linear,
            resident=ColumnRange(0, resident),
            streamed=ColumnRange(resident, decode),
            host=ColumnRange(decode, columns),
            reason=_reason(request, columns, resident, decode) if request.movable(linear) else reason,
            host_format=request.kept_format(linear),
            prefill_stop=prefill if prefill > decode else 0,
        )


def _numbers(sorts: Sequence[int]) -> list[int]:
    """The number of each Linear among those of its sort."""
    counts: Counter[int] = Counter()
    numbers = []
    for sort in sorts:
        numbers.append(counts[sort])
        counts[sort] += 1
    return numbers


def sorts_of(linears: Sequence[LinearSpec]) -> list[int]:
    """A number for each Linear, equal for those that differ in nothing but name, layer and group."""
    sorts: dict[tuple[object, ...], int] = {}
    found = []
    for q in linears:
        shape = (q.in_features, q.out_features, q.format, q.layout, q.weight_bytes)
        found.append(sorts.setdefault((*shape, q.host_only_reason, q.blocks, q.activations), len(sorts)))
    return found


def _kept_bytes(placement: LinearPlacement) -> int:
    """Bytes of all columns as streamed and host ones are kept."""
    return ceil(placement.linear.out_features * placement.host_column_bytes)


def _reason(request: PlanRequest, columns: int, resident: int, on_device: int) -> str:
    if resident == columns:
        return "all columns fit the budget"
    fitting = f"{resident:,} of {columns:,} columns fit the budget"
    if on_device > resident:
        return f"{fitting}; {counted(on_device - resident, 'is', 'are')} faster over the bus"
    if resident:
        return fitting
    return "the budget is 0" if request.budget_bytes == 0 else "the budget pays better elsewhere, or holds no tile"
