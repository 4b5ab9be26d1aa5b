"""The plan: where every column of every Linear goes, what that takes and what a step should cost. Plain data."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from offload.spec.linear import BlockFormat, ColumnRange, LinearSpec, WeightFormat


class HostTier(StrEnum):
    """The places in which host columns are kept."""

    RAM = "ram"
    FILE = "file"  # read again at every step, through a few buffers


@dataclass(frozen=True)
class LinearPlacement:
    """The three column ranges of one Linear, in this order: resident, streamed, host; together all columns.

    `host_format` is how streamed and host columns are kept: the Linear's own format, or what they are quantised to on
    load.
    In prefill the columns from `resident.stop` to `prefill_stop` are streamed, be they host columns in decode;
    0 stands for "as in decode".
    """

    linear: LinearSpec
    resident: ColumnRange
    streamed: ColumnRange
    host: ColumnRange
    reason: str
    host_format: WeightFormat
    tier: HostTier = HostTier.RAM
    prefill_stop: int = 0

    def __post_init__(self) -> None:
        edges = (self.resident.start, self.resident.stop, self.streamed.stop, self.host.stop)
        joined = self.resident.stop == self.streamed.start and self.streamed.stop == self.host.start
        if not joined or edges[0] != 0 or edges[-1] != self.linear.out_features or list(edges) != sorted(edges):
            raise ValueError(
                f"{self.linear.name}: column ranges {edges} do not tile {self.linear.out_features} columns"
            )

        if self.prefill_stop and not self.streamed.stop <= self.prefill_stop <= self.linear.out_features:
            raise ValueError(f"{self.linear.name}: prefill cannot stream up to column {self.prefill_stop}")
        if self.prefill_stop > self.streamed.stop and self.tier is HostTier.FILE:
            raise ValueError(f"{self.linear.name}: prefill cannot stream host columns of tier {self.tier}")

    @property
    def host_blocks(self) -> BlockFormat | None:
        """Say how streamed and host columns are block-quantised; None where they are not."""
        if self.host_format is self.linear.format:
            return self.linear.blocks
        return BlockFormat.made_on_load(self.host_format)

    @property
    def host_column_bytes(self) -> float:
        """Bytes of one streamed or host column as it is kept."""
        if self.host_format is self.linear.format:
            return self.linear.column_bytes
        return BlockFormat.made_on_load(self.host_format).column_bytes(self.linear.in_features)

    @property
    def on_device(self) -> bool:
        """True when any column is multiplied by the device, be it in prefill only."""
        return len(self.resident) + len(self.streamed_in(prefill=True)) > 0

    def streamed_in(self, prefill: bool) -> ColumnRange:
        """The columns that cross the bus in a step of prefill or decode."""
        if prefill and self.prefill_stop:
            return ColumnRange(self.resident.stop, self.prefill_stop)
        return self.streamed

    def host_in(self, prefill: bool) -> ColumnRange:
        """The columns that the CPU multiplies in a step of prefill or decode."""
        return ColumnRange(self.streamed_in(prefill).stop, self.linear.out_features)


def by_group(placements: Iterable[LinearPlacement]) -> list[list[LinearPlacement]]:
    """The placements of each group, in the order of the groups' first Linears."""
    groups: dict[str, list[LinearPlacement]] = {}
    for placement in placements:
        groups.setdefault(placement.linear.group, []).append(placement)
    return list(groups.values())


@dataclass(frozen=True)
class Prediction:
    """The replay's decode step; `parts_s` says what the host waits for, and adds up to the step."""

    decode_step_s: float
    decode_tokens_per_s: float
    bound_by: str  # the largest of the parts
    depth: int  # tokens already in the cache
    parts_s: dict[str, float]


@dataclass(frozen=True)
class Prefill:
    """The replay's chunk of `tokens` new tokens."""

    tokens: int
    step_s: float
    tokens_per_s: float
    bound_by: str


@dataclass(frozen=True)
class Advice:
    """The gain of a change of settings, and whether no weight would be read from files at every step then."""

    change: str
    decode_tokens_per_s: float
    speedup: float
    fits_ram: bool


@dataclass(frozen=True)
class StreamRing:
    """The VRAM slots that streamed columns pass through."""

    slots: int
    slot_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes


@dataclass(frozen=True)
class Plan:
    """Everything execution has to obey. `vram_bytes` and `ram_bytes` are by name; their sums are the totals.

    `bound_s` is a time below which no placement within the budgets comes, as far as the MILP knows.
    """

    model: str
    machine: dict[str, Any]
    budget_bytes: int
    chunk_tokens: int  # the most tokens of one prefill step; sizes the activation buffers
    prefill_tokens: int  # steps of at least so many tokens stream up to `prefill_stop`; 0: none does
    ring: StreamRing
    vram_bytes: dict[str, int]
    ram_bytes: dict[str, int]
    placements: tuple[LinearPlacement, ...]
    predicted: Prediction
    at_depths: tuple[Prediction, ...]
    prefill: Prefill
    bound_s: float | None = None
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    warnings: tuple[str, ...] = ()  # those of the notes that say that not everything is as it was asked for
    ram_budget_bytes: int | None = None
    ram_is_asked: bool = False  # the RAM budget is the user's own, not one chosen for the machine
    read_ahead_bytes: int = 0  # the buffer that Linears of tier FILE are read through

    @property
    def total_vram_bytes(self) -> int:
        """VRAM the plan takes, everything included."""
        return sum(self.vram_bytes.values())

    @property
    def total_ram_bytes(self) -> int:
        """RAM the plan takes, everything included."""
        return sum(self.ram_bytes.values())

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values, with stable keys in a stable order."""
        return {
            "model": self.model,
            "machine": self.machine,
            "budget_bytes": self.budget_bytes,
            "ram_budget_bytes": self.ram_budget_bytes,
            "chunk_tokens": self.chunk_tokens,
            "prefill_tokens": self.prefill_tokens,
            "ring": asdict(self.ring),
            "vram_bytes": dict(self.vram_bytes),
            "ram_bytes": dict(self.ram_bytes),
            "linears": [_linear_json(placement) for placement in self.placements],
            "predicted": asdict(self.predicted),
            "at_depths": [asdict(prediction) for prediction in self.at_depths],
            "prefill": asdict(self.prefill),
            "bound_s": self.bound_s,
            "advice": [asdict(advice) for advice in self.advice],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def _linear_json(placement: LinearPlacement) -> dict[str, Any]:
    linear = placement.linear
    return {
        "name": linear.name,
        "shape": [linear.in_features, linear.out_features],
        "format": str(linear.format),
        "layout": str(linear.layout),
        "bytes": linear.weight_bytes,
        "kind": linear.kind,
        "layer": linear.layer,
        "host_format": str(placement.host_format),
        "tier": str(placement.tier),
        "resident": [placement.resident.start, placement.resident.stop],
        "streamed": [placement.streamed.start, placement.streamed.stop],
        "host": [placement.host.start, placement.host.stop],
        "prefill_stop": placement.prefill_stop,
        "reason": placement.reason,
    }
