"""Prefill: the resident columns of decode, and anew what to stream: with many tokens the bus is cheap, the CPU not."""

from collections.abc import Sequence
from dataclasses import replace

from offload.cost_model import Workload, step_cost
from offload.kinds import Kinds
from offload.placing import CHUNK_TOKENS, PlanRequest, Shares, SharesOf, fits, place_linears
from offload.plan import LinearPlacement, StreamRing
from offload.replay import replay
from offload.specs import Layout, LinearSpec
from offload.units import MIB

_RING = StreamRing(4, 4 * MIB)
_TOKENS = (256, 128, 64, 32, 16, 8)  # from the longest chunk down


def prefill_phase(
    request: PlanRequest, shares: SharesOf, ring: StreamRing, placements: Sequence[LinearPlacement]
) -> tuple[SharesOf, StreamRing, int]:
    """Shares with the part that prefill streams, the ring it needs, and from how many tokens on it pays; 0: never.

    The ring and the larger activations of prefill take VRAM: where they do not fit, nothing more is streamed.
    """
    if not any(placement.on_device for placement in placements) or request.pinned_limit_bytes is not None:
        return shares, ring, 0
    work = Workload(0, CHUNK_TOKENS, prefill=True)
    used = ring if ring.slots else _RING
    kinds = Kinds(request, work)
    solution = kinds.solve(float("inf"), used, resident=shares)
    if solution is None:
        return shares, ring, 0
    wanted = kinds.shares(solution)

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


def _streamable(request: PlanRequest, linear: LinearSpec) -> bool:
    """Whether its host columns lie one by one in memory of ours: those of a float [K, N] weight share its pages."""
    return linear.layout is Layout.NK or request.kept_format(linear) is not linear.format


def _step_s(
    request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing, rows: int, prefill: bool
) -> float:
    work = Workload(0, rows, prefill)
    return replay(step_cost(placements, ring, request.step, request.profile, work), ring).step_s
