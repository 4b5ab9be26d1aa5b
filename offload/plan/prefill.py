"""Prefill: the resident columns of decode, and anew what to stream: with many tokens the bus is cheap, the CPU not."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from offload.plan.cost import Workload, step_cost
from offload.plan.kinds import Kinds
from offload.plan.placing import CHUNK_TOKENS, PlanRequest, Shares, SharesOf, fits, place_linears
from offload.plan.plan import LinearPlacement, StreamRing
from offload.plan.replay import replay
from offload.spec.linear import Layout, LinearSpec
from offload.spec.units import MIB

LEAST_RING = StreamRing(4, MIB)
_RINGS = (StreamRing(4, 4 * MIB), StreamRing(4, 2 * MIB), LEAST_RING)
_TOKENS = (256, 128, 64, 32, 16, 8)  # from the longest chunk down


def prefill_phase(
    request: PlanRequest, shares: SharesOf, ring: StreamRing, placements: Sequence[LinearPlacement]
) -> tuple[SharesOf, StreamRing, int]:
    """Shares with the part that prefill streams, the ring it needs, and from how many tokens on it pays; 0: never.

    The ring and the larger activations of prefill take VRAM: where they do not fit, nothing more is streamed.
    """
    if not any(placement.on_device for placement in placements) or not may_stream(request):
        return shares, ring, 0
    kinds = Kinds(request, Workload(0, CHUNK_TOKENS, prefill=True))
    all_streamed = place_linears(request, streaming_all(request, shares))
    rings = (ring,) if ring.slots else _RINGS
    used = next((one for one in rings if fits(request, all_streamed, one)), rings[-1])
    milp = kinds.milp(inf, used, resident=shares)
    fastest = milp.fastest()
    if fastest is None:
        return shares, ring, 0
    wanted = kinds.shares(milp.smoothest(fastest))

    def both(linear: LinearSpec) -> Shares:
        return replace(shares(linear), prefill=wanted(linear).streamed if _streamable(request, linear) else 0.0)

    placed = place_linears(request, both)
    if not fits(request, placed, used):
        return shares, ring, 0
    tokens = 0
    for rows in _TOKENS:
        if _step_s(request, placed, used, rows, True) >= _step_s(request, placements, ring, rows, False):
            break
        tokens = rows
    return (both, used, tokens) if tokens else (shares, ring, 0)


def may_stream(request: PlanRequest) -> bool:
    """Tell whether prefill may stream host columns at all."""
    return request.pinned_limit_bytes is None and any(_streamable(request, linear) for linear in request.linears)


def streaming_all(request: PlanRequest, shares: SharesOf) -> SharesOf:
    """The shares with all columns streamed in prefill that may be."""
    return lambda linear: replace(shares(linear), prefill=1.0 if _streamable(request, linear) else 0.0)


def _streamable(request: PlanRequest, linear: LinearSpec) -> bool:
    """Tell whether its host columns lie one by one in our memory: those of a float [K, N] weight share its pages."""
    by_column = linear.layout is Layout.NK or request.kept_format(linear) is not linear.format
    return by_column and request.streamable(linear)


def _step_s(
    request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing, rows: int, prefill: bool
) -> float:
    work = Workload(0, rows, prefill)
    return replay(step_cost(placements, ring, request.step, request.profile, work), ring).step_s
