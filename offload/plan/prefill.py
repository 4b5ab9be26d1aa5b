"""Prefill: the resident columns of decode, and anew what to stream: with many tokens the bus is cheap, the CPU not."""

from dataclasses import replace
from math import inf

from offload.plan.cost import step_cost
from offload.plan.kinds import Kinds
from offload.plan.memory import fits
from offload.plan.placer import Placer
from offload.plan.placing import Placement
from offload.plan.plan import StreamRing
from offload.plan.replay import replay
from offload.plan.request import CHUNK_TOKENS, PlanRequest
from offload.plan.shares import ModelShares
from offload.spec.step import Workload
from offload.spec.units import MIB

LEAST_RING = StreamRing(4, MIB)
_RINGS = (StreamRing(4, 4 * MIB), StreamRing(4, 2 * MIB), LEAST_RING)
_TOKENS = (256, 128, 64, 32, 16, 8)  # from the longest chunk down


def prefill_phase(placer: Placer, shares: ModelShares, decode: Placement) -> Placement:
    """`decode`, which has these shares, with what prefill streams, and from how many tokens on that pays.

    The ring and the larger activations of prefill take VRAM: where they do not fit, nothing more is streamed.
    """
    request = placer.request
    if not decode.model.on_device or not placer.any_prefill_streamable:
        return decode
    kinds = Kinds(placer, Workload(0, CHUNK_TOKENS, prefill=True))
    all_streamed = placer.place(placer.streaming_all(shares))
    rings = (decode.ring,) if decode.ring.slots else _RINGS
    ring = next((one for one in rings if fits(request, all_streamed, one)), rings[-1])
    milp = kinds.milp(inf, ring, resident=shares)
    fastest = milp.fastest()
    if fastest is None:
        return decode
    wanted = placer.where_prefill_streams(kinds.shares(milp.smoothest(fastest)).streamed)
    model = placer.place(shares.with_prefill(wanted))
    if not fits(request, model, ring):
        return decode
    streamed = Placement(model, ring)
    tokens = 0
    for rows in _TOKENS:
        if _step_s(request, streamed, rows, True) >= _step_s(request, decode, rows, False):
            break
        tokens = rows
    return replace(streamed, prefill_tokens=tokens) if tokens else decode


def _step_s(request: PlanRequest, placement: Placement, rows: int, prefill: bool) -> float:
    cost = step_cost(placement.model, placement.ring, request.step, request.profile, Workload(0, rows, prefill))
    return replay(cost, placement.ring).step_s
