"""Which host columns are kept in RAM when not all of them may be, and what a RAM cap has to hold. Pure arithmetic."""

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from offload.errors import RamBudgetError
from offload.plan.plan import HostTier, LinearPlacement
from offload.spec.arrays import ALIGNMENT_BYTES
from offload.spec.linear import Layout
from offload.spec.units import format_bytes

T = TypeVar("T")

PAGE_BYTES = mmap.PAGESIZE  # O_DIRECT wants memory, offsets and sizes to be multiples of a sector; a page is one
# A virtual disk gave 1.6 GB/s for 1-4 requests of 4 MiB and 1.9 GB/s for 4 of 16 MiB; 0.8 for one of 1 MiB.
PIECE_BYTES = 8 << 20

HOST_WEIGHTS, READ_AHEAD = "host weights", "read-ahead buffers"
_RING_PIECES = 8  # one being multiplied, four being read, the others there for when the processor is ahead
_BLOCK_PARTS = 3  # block-quantised weights, their scales and their zero points lie in three places


def host_ram_bytes(placement: LinearPlacement) -> int:
    """RAM for the host columns."""
    return 0 if placement.tier is HostTier.FILE else round(len(placement.host) * placement.host_column_bytes)


def _of_each(placements: Sequence[LinearPlacement], told: Callable[[LinearPlacement], T]) -> list[T]:
    """What is told of every placement; where several are the same object, it is asked once."""
    known = {id(placement): placement for placement in placements}
    answers = {number: told(placement) for number, placement in known.items()}
    return [answers[id(placement)] for placement in placements]


def _in_file(placement: LinearPlacement) -> LinearPlacement:
    return replace(placement, tier=HostTier.FILE, host_format=placement.linear.format, prefill_stop=0)


def _given_back_bytes(placement: LinearPlacement) -> int:
    """RAM that tier FILE gives back: less where streamed columns are no longer quantised."""
    streamed = len(placement.streamed)
    if not streamed or placement.host_format is placement.linear.format:
        return host_ram_bytes(placement)
    more = streamed * (placement.linear.column_bytes - placement.host_column_bytes)
    return host_ram_bytes(placement) - round(more) - 2 * ALIGNMENT_BYTES  # they may lie in a matrix more


def keep_in_ram(
    placements: Sequence[LinearPlacement], fixed_bytes: Mapping[str, int], budget_bytes: int | None
) -> tuple[LinearPlacement, ...]:
    """The placements with as few whole Linears tier FILE as make the rest fit, the read-ahead buffers included.

    What is not host columns takes `fixed_bytes`, by name; without a budget everything fits.

    The Linears are spread evenly over the running order, so that reading and multiplying take turns everywhere;
    none of them could go back to RAM. Those that our kernels do not multiply stay in RAM even where they do not fit.
    FILE Linears keep the format of the file, their streamed columns too.
    """
    sizes = _of_each(placements, _given_back_bytes)
    taken = sum(_of_each(placements, host_ram_bytes))
    over = 0 if budget_bytes is None else taken + sum(fixed_bytes.values()) - budget_bytes
    if over <= 0:
        return tuple(placements)
    movable = [number for number, p in enumerate(placements) if sizes[number] > 0 and not p.linear.host_only_reason]
    excess = over + _ring_bytes([placements[number] for number in movable])
    chosen = _minimal(_spread(movable, sizes, excess), sizes, excess)
    in_files = _of_each(placements, _in_file)
    return tuple(in_files[number] if number in chosen else p for number, p in enumerate(placements))


def ram_bytes(placements: Sequence[LinearPlacement], fixed_bytes: Mapping[str, int]) -> dict[str, int]:
    """Count a plan's bytes of RAM, by name. The buffer of the FILE Linears is as large as READ_AHEAD says."""
    return {
        HOST_WEIGHTS: sum(_of_each(placements, host_ram_bytes)),
        READ_AHEAD: _ring_bytes([placement for placement in placements if placement.tier is HostTier.FILE]),
        **fixed_bytes,
    }


def file_bytes(placements: Sequence[LinearPlacement]) -> int:
    """Bytes that are read from files at every step: host columns, but whole [K, N] weights, whose rows are read."""
    files = [p for p in placements if p.tier is HostTier.FILE and len(p.host)]
    return sum(
        p.linear.weight_bytes if p.linear.layout is Layout.KN else round(len(p.host) * p.linear.column_bytes)
        for p in files
    )


def file_warnings(placements: Sequence[LinearPlacement]) -> tuple[str, ...]:
    """Warn people of a plan that reads weights from files at every step."""
    nbytes = file_bytes(placements)
    if nbytes == 0:
        return ()
    total = format_bytes(sum(placement.linear.weight_bytes for placement in placements))
    return (
        f"{format_bytes(nbytes)} of {total} of weights are beyond the RAM cap and are read from the disk at every step",
    )


def check_ram(ram_bytes: Mapping[str, int], budget_bytes: int | None, most_bytes: int = 0) -> None:
    """Raise RamBudgetError when what a plan takes of RAM is above its cap, with the least that would do.

    `most_bytes` is what the cap could be raised to; 0: not known.
    """
    total = sum(ram_bytes.values())
    if budget_bytes is None or total <= budget_bytes:
        return
    names = ", ".join(
        f"{'weights that must be in RAM' if name == HOST_WEIGHTS else name} {format_bytes(nbytes)}"
        for name, nbytes in ram_bytes.items()
        if nbytes
    )
    hint = "lower --context, or take a smaller model" if 0 < most_bytes < total else "raise --ram, or lower --context"
    raise RamBudgetError(
        f"--ram of {format_bytes(budget_bytes)} is too small: at the least this model takes {format_bytes(total)} of "
        f"RAM ({names}); {hint}",
        total,
    )


def _ring_bytes(placements: Sequence[LinearPlacement]) -> int:
    """Room for a few pieces with the parts of pages around them; for all of them, where that is less."""
    largest = whole = 0
    for placement in placements:
        linear = placement.linear
        rows = linear.out_features if linear.layout is Layout.NK else linear.in_features
        most = max(PIECE_BYTES, -(-linear.weight_bytes // rows))
        pieces = -(-linear.weight_bytes // (most // 2))  # split evenly, at most twice as many as there must be
        around = 2 * PAGE_BYTES * (1 if linear.format.is_float else _BLOCK_PARTS)
        largest = max(largest, most + around)
        whole += linear.weight_bytes + pieces * around
    return min(_RING_PIECES * largest, whole)


def _spread(movable: Sequence[int], sizes: Sequence[int], excess: int) -> list[int]:
    """Linears of at least `excess` bytes, or all: whenever the bytes passed are due more than is taken, the next."""
    total = sum(sizes[number] for number in movable)
    chosen, passed, taken = [], 0, 0
    for number in movable:
        passed += sizes[number]
        if taken * total < passed * min(excess, total):
            chosen.append(number)
            taken += sizes[number]
    return chosen


def _minimal(chosen: Sequence[int], sizes: Sequence[int], excess: int) -> set[int]:
    """Without those, largest first, that are not needed."""
    kept, over = set(chosen), sum(sizes[number] for number in chosen) - excess
    for number in sorted(chosen, key=lambda number: (-sizes[number], number)):
        if sizes[number] <= over:
            kept.remove(number)
            over -= sizes[number]
    return kept
