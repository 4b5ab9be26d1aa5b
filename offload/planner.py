"""Decide where the columns go: candidates, the integer programme's among them, are replayed; the fastest one wins."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from offload.kinds import Kinds
from offload.packing import packed_stream_bytes, working_memory
from offload.placing import (
    CHUNK_TOKENS,
    NO_RING,
    PlanRequest,
    Shares,
    SharesOf,
    fits,
    fixed_ram_bytes,
    place,
    place_linears,
    predict,
    vram_bytes,
)
from offload.plan import LinearPlacement, Plan, StreamRing
from offload.prefill_plan import prefill_phase
from offload.ram_tiers import check_ram
from offload.specs import LinearSpec
from offload.units import MIB

_SEARCH_STEPS = 20
# Small slots and few: what is queued for the bus when activations come is in their way.
_RINGS = tuple(StreamRing(slots, slot_mib * MIB) for slot_mib in (1, 2, 4) for slots in (4, 16))
_SIMPLE_RING = StreamRing(4, 4 * MIB)
_WORTH = 0.98  # a placement that does more has to be this much faster


@dataclass(frozen=True)
class _Candidate:
    shares: SharesOf
    ring: StreamRing
    placements: tuple[LinearPlacement, ...]
    step_s: float
    fits: bool


def make_plan(request: PlanRequest) -> Plan:
    """The fastest placement within the budgets, as the replay has it.

    Never slower there than everything on the host, filling VRAM layer by layer, filling it with an equal share of
    every Linear, or streaming all that it does not hold.
    Raises RamBudgetError when all of them need more RAM than there may be.
    """
    best = _candidate(request, lambda _: Shares(), NO_RING)
    bound_s: float | None = None
    if request.budget_bytes and any(request.movable(linear) for linear in request.linears):
        for shares, ring in _simple(request):
            best = _faster(best, _candidate(request, shares, ring))
        kinds = Kinds(request)
        overhead_bytes, weights_ram_bytes = _overhead_bytes(request), _weights_ram_bytes(request)
        for ring in (NO_RING, *_RINGS):
            room = request.budget_bytes - overhead_bytes - ring.nbytes
            solution = kinds.solve(room, ring, ram_bytes=weights_ram_bytes) if room > 0 else None
            if solution is None:
                continue
            bound_s = solution.bound_s if bound_s is None else min(bound_s, solution.bound_s)
            if solution.bound_s >= best.step_s:
                continue
            fitted = _fit(request, kinds.shares(solution), ring)
            best = _faster(best, fitted)
    shares, ring, prefill_tokens = prefill_phase(request, best.shares, best.ring, best.placements)
    plan = place(request, shares, ring, prefill_tokens)
    check_ram(plan.ram_bytes, plan.ram_budget_bytes)
    return replace(plan, bound_s=bound_s)


def _faster(best: _Candidate, other: _Candidate) -> _Candidate:
    """`other` where it fits and is worth it; later candidates do more."""
    is_worth_it = not best.fits or other.step_s < best.step_s * _WORTH
    return other if other.fits and is_worth_it else best


def _candidate(request: PlanRequest, shares: SharesOf, ring: StreamRing) -> _Candidate:
    placements = place_linears(request, shares)
    if not any(len(placement.streamed) for placement in placements):
        ring = NO_RING
    step_s = predict(request, placements, ring, request.depth).decode_step_s
    is_within = fits(request, placements, ring) and _may_be_pinned(request, placements)
    return _Candidate(shares, ring, placements, step_s, is_within)


def _overhead_bytes(request: PlanRequest) -> int:
    """VRAM besides ring and resident columns, when every Linear has columns on the device."""
    whole = place_linears(request, lambda _: Shares(1.0))
    return sum(request.fixed_vram_bytes.values()) + working_memory(whole, CHUNK_TOKENS).device_bytes


def _weights_ram_bytes(request: PlanRequest) -> int | None:
    """RAM that is left for host and streamed columns, when every Linear has columns on the device; None: no limit."""
    if request.ram_budget_bytes is None:
        return None
    whole = place_linears(request, lambda _: Shares(1.0))
    return request.ram_budget_bytes - sum(fixed_ram_bytes(request, whole).values())


def _simple(request: PlanRequest) -> Iterator[tuple[SharesOf, StreamRing]]:
    """What other programs do: an equal share of everything, whole layers first, and the rest streamed."""
    share = _largest(lambda part: _fits(request, lambda _: Shares(part), NO_RING))
    yield (lambda _: Shares(share)), NO_RING
    movable = [linear.name for linear in request.linears if request.movable(linear)]
    count = _largest_count(request, movable)
    first = frozenset(movable[:count])
    yield (lambda linear: Shares(1.0 if linear.name in first else 0.0)), NO_RING
    streams = _largest(lambda part: _fits(request, lambda _: Shares(part, 1.0 - part), _SIMPLE_RING))
    if request.pinned_limit_bytes is None and streams > 0:
        yield (lambda _: Shares(streams, 1.0 - streams)), _SIMPLE_RING


def _largest_count(request: PlanRequest, names: Sequence[str]) -> int:
    """How many Linears, in order, fit the budget whole."""
    low, high = 0, len(names)
    while low < high:
        middle = (low + high + 1) // 2
        held = frozenset(names[:middle])
        if _fits(request, lambda linear, held=held: Shares(1.0 if linear.name in held else 0.0), NO_RING):  # type: ignore[misc]
            low = middle
        else:
            high = middle - 1
    return low


def _fit(request: PlanRequest, shares: SharesOf, ring: StreamRing) -> _Candidate:
    """The shares, made smaller by what rounding to tiles and alignment took too much."""

    def scaled(resident: float, streamed: float) -> SharesOf:
        def of(linear: LinearSpec) -> Shares:
            wanted = shares(linear)
            return replace(wanted, resident=wanted.resident * resident, streamed=wanted.streamed * streamed)

        return of

    resident = _largest(lambda part: _fits(request, scaled(part, 1.0), ring))
    streamed = _largest(lambda part: _may_be_pinned(request, place_linears(request, scaled(resident, part))))
    return _candidate(request, scaled(resident, streamed), ring)


def _fits(request: PlanRequest, shares: SharesOf, ring: StreamRing) -> bool:
    placements = place_linears(request, shares)
    return sum(vram_bytes(request, placements, ring).values()) <= request.budget_bytes


def _may_be_pinned(request: PlanRequest, placements: Sequence[LinearPlacement]) -> bool:
    limit_bytes = request.pinned_limit_bytes
    return limit_bytes is None or packed_stream_bytes(placements) <= limit_bytes


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest part from 0 to 1 that fits."""
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
