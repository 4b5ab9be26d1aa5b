"""Decide where the columns go: the MILP's answers, for rings of some sizes, are replayed; the fastest one wins."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from offload.plan.fitting import grow, largest_part, shrink
from offload.plan.kinds import MOST_KINDS, Kinds
from offload.plan.memory import fits, fixed_ram_bytes, vram_bytes
from offload.plan.milp import PlacementMilp, Solution
from offload.plan.packing import packed_stream_bytes
from offload.plan.placed_model import PlacedModel
from offload.plan.placer import Placer, sorts_of
from offload.plan.placing import NO_RING, Placement, plan_of, predict
from offload.plan.plan import Plan, StreamRing
from offload.plan.prefill import LEAST_RING, prefill_phase
from offload.plan.ram_tiers import check_ram
from offload.plan.request import PlanRequest
from offload.plan.shares import ModelShares
from offload.spec.step import Workload
from offload.spec.units import MIB

_RINGS = (StreamRing(4, MIB), StreamRing(4, 2 * MIB), StreamRing(4, 4 * MIB), StreamRing(16, 4 * MIB))
_WORTH = 0.98  # what uses the device has to be this much faster than all on the host
_TIE = 0.999  # what does more has to be this much faster than what does less
_MOST_SEARCHED = 4096  # Linears: large models have hundreds
_MOST_SORTS = 200  # Linears that differ: models have ten or so
_MOST_PLACED = 16384  # Linears that are placed on a device at all
_PREFILL_WORTH = 0.8  # columns are given up for a prefill that is this much faster, where decode loses 1 - _WORTH


def make_plan(request: PlanRequest) -> Plan:
    """The fastest placement within the budgets, as the replay has it.

    Never slower there than everything on the host. But decode may lose a fiftieth for a prefill that is faster by a
    quarter, or where the device holds all and leaves the CPU alone.
    Raises RamBudgetError when all of them need more RAM than there may be.
    """
    placer = Placer(request)
    decode = _Search(placer, for_prefill=False)
    milps = decode.milps()
    bound_s = min((fastest.bound_s for fastest, _, _ in milps), default=None)
    plan = _plan_for_prefill(decode) if milps else None
    if plan is None or bound_s is None or bound_s < plan.predicted.decode_step_s * _WORTH:
        for_decode = _planned(decode, milps)
        if plan is None or not _is_worth_it(plan, for_decode):
            plan = for_decode
    check_ram(plan.ram_bytes, plan.ram_budget_bytes, request.most_ram_bytes)
    return replace(plan, bound_s=bound_s, notes=(*plan.notes, *decode.notes))


def is_searched(request: PlanRequest) -> bool:
    """Tell whether the model is small enough to search its best placement."""
    return len(request.linears) <= _MOST_SEARCHED and len(set(sorts_of(request.linears))) <= _MOST_SORTS


def _why_not_searched(request: PlanRequest) -> str:
    count = len(request.linears)
    how = "each gets an equal share of the GPU, or none" if count <= _MOST_PLACED else "the GPU gets none"
    return (
        f"{count:,} Linears of {len(set(sorts_of(request.linears))):,} kinds are too many to look for their best "
        f"placement (up to {_MOST_SEARCHED:,} of {_MOST_SORTS} kinds are not): {how}"
    )


def _plan_for_prefill(decode: "_Search") -> Plan | None:
    """The plan with all on the device or with room for what prefill streams; None where that cannot be or helps not."""
    placer, request = decode.placer, decode.request
    if decode.holds_all():
        plan = plan_of(request, Placement(placer.place(ModelShares.equal(placer.count, 1.0))))
    elif placer.any_prefill_streamable:
        prefill = _Search(placer, for_prefill=True)
        plan = _planned(prefill, prefill.milps())
        if not plan.prefill_tokens:
            return None
    else:
        return None
    fits_ram = plan.total_ram_bytes <= (request.ram_budget_bytes or inf)
    is_faster = plan.predicted.decode_step_s < decode.on_host.step_s * _WORTH
    return plan if fits_ram and is_faster and plan.total_vram_bytes <= request.budget_bytes else None


def _is_worth_it(plan: Plan, for_decode: Plan) -> bool:
    """Tell whether what `plan` gives to prefill is worth what decode loses, or that it holds all."""
    holds_all = not any(len(placement.streamed_in(prefill=True)) for placement in plan.placements)
    gains = holds_all or plan.prefill.step_s < for_decode.prefill.step_s * _PREFILL_WORTH
    return gains and plan.predicted.decode_step_s * _WORTH <= for_decode.predicted.decode_step_s


_Milps = list[tuple[Solution, StreamRing, PlacementMilp]]


def _planned(search: "_Search", milps: _Milps) -> Plan:
    best = search.best(milps)
    placement = best.placement if search.is_short else prefill_phase(search.placer, best.shares, best.placement)
    return plan_of(search.request, placement)


@dataclass(frozen=True, eq=False)
class _Candidate:
    shares: ModelShares
    placement: Placement
    step_s: float
    fits: bool


class _Search:
    """For the fastest placement; `for_prefill` leaves room for all that prefill may stream."""

    def __init__(self, placer: Placer, for_prefill: bool) -> None:
        self.placer = placer
        self.request = placer.request
        self._for_prefill = for_prefill
        self.notes: tuple[str, ...] = ()  # what bounded the search
        self.is_short = not is_searched(self.request)
        if self.is_short and self.request.budget_bytes:
            self.notes += (_why_not_searched(self.request),)

    @cached_property
    def on_host(self) -> _Candidate:
        """Everything on the host."""
        return self._candidate(ModelShares.equal(self.placer.count), NO_RING)

    def holds_all(self) -> bool:
        """Tell whether the budget holds every Linear that may be on the device."""
        return self._excess_bytes(ModelShares.equal(self.placer.count, 1.0), NO_RING) <= 0

    def best(self, milps: _Milps) -> _Candidate:
        """The fastest placement, or where it hardly differs, one that does less."""
        on_host = self.on_host
        if not self._may_use_device():
            return on_host
        candidates = [self._equal_share()] if self.is_short else self._solved(milps)
        fitting = [candidate for candidate in candidates if candidate.fits]
        if not fitting:
            return on_host
        least_s = min(candidate.step_s for candidate in fitting)
        best = next(candidate for candidate in fitting if candidate.step_s * _TIE <= least_s)
        return on_host if on_host.fits and best.step_s >= on_host.step_s * _WORTH else best

    def _equal_share(self) -> _Candidate:
        """As much of every Linear as fits."""

        def equal(part: float) -> ModelShares:
            return ModelShares.equal(self.placer.count, part)

        share = largest_part(lambda part: self._excess_bytes(equal(part), NO_RING))
        return self._candidate(equal(share), NO_RING)

    @cached_property
    def _kinds(self) -> Kinds:
        return Kinds(self.placer, Workload(self.request.depth))

    def milps(self) -> _Milps:
        """Solve the MILP for every ring, fastest first; nothing where no column fits the device."""
        request = self.request
        if self.is_short or not self._may_use_device():
            return []
        kinds, ram_bytes = self._kinds, self._weights_ram_bytes()
        least_bytes = vram_bytes(request, self.placer.whole, NO_RING)["activations"] if self._for_prefill else 0
        fixed_bytes = sum(request.fixed_vram_bytes.values())
        found = []
        for ring in (NO_RING, *_RINGS) if self.placer.any_streamable else (NO_RING,):
            room_bytes = request.budget_bytes - fixed_bytes - self._counted(ring).nbytes
            milp = kinds.milp(room_bytes, ring, ram_bytes=ram_bytes, least_activation_bytes=least_bytes)
            fastest = milp.fastest()
            if fastest is not None:
                found.append((fastest, ring, milp))
        if kinds.count > MOST_KINDS:
            self.notes += (
                f"{kinds.count:,} kinds of Linears are planned as {MOST_KINDS} at most, those of about one size alike",
            )
        if not all(fastest.finished for fastest, _, _ in found):
            self.notes += ("the search for a placement ended early: a better one may exist",)
        return sorted(found, key=lambda entry: entry[0].bound_s)

    def _solved(self, milps: _Milps) -> Iterator[_Candidate]:
        """Yield what may be faster than the ones before, and than everything on the host."""
        known_s = self.on_host.step_s if self.on_host.fits else inf
        for fastest, ring, milp in milps:
            if fastest.bound_s >= known_s * _TIE:
                break
            candidate = self._fit(self._kinds.shares(milp.smoothest(fastest)), ring)
            yield candidate
            if candidate.fits:
                known_s = min(known_s, candidate.step_s)

    def _may_use_device(self) -> bool:
        return self.request.budget_bytes > 0 and self.placer.any_movable and self.placer.count <= _MOST_PLACED

    def _fit(self, shares: ModelShares, ring: StreamRing) -> _Candidate:
        """The shares, made smaller by what rounding and alignment took too much, or larger where that is faster."""

        def excess_bytes(shares: ModelShares) -> int:
            return self._excess_bytes(shares, ring)

        shrunk = self._candidate(self._pinnable(shrink(shares, excess_bytes)), ring)
        grown = self._candidate(self._pinnable(grow(shares, excess_bytes)), ring)
        return grown if grown.fits and grown.step_s < shrunk.step_s else shrunk

    def _pinnable(self, shares: ModelShares) -> ModelShares:
        """The shares with so much of what is streamed as may be pinned."""
        if self.request.pinned_limit_bytes is None:
            return shares
        part = largest_part(lambda part: self._unpinnable_bytes(self.placer.place(shares.with_streamed(part))))
        return shares.with_streamed(part) if part < 1 else shares

    def _candidate(self, shares: ModelShares, ring: StreamRing) -> _Candidate:
        request = self.request
        model = self.placer.place(shares)
        if not any(len(placement.streamed) for placement in model.distinct):
            ring = NO_RING
        step_s = predict(request, model, ring, request.depth).decode_step_s
        counted = self.placer.place(self.placer.streaming_all(shares)) if self._for_prefill else model
        is_within = fits(request, counted, self._counted(ring)) and self._unpinnable_bytes(model) <= 0
        return _Candidate(shares, Placement(model, ring), step_s, is_within)

    def _excess_bytes(self, shares: ModelShares, ring: StreamRing) -> int:
        """Measure how far shares are above the budget of VRAM, negative below."""
        counted = self.placer.streaming_all(shares) if self._for_prefill else shares
        taken = vram_bytes(self.request, self.placer.place(counted), self._counted(ring))
        return sum(taken.values()) - self.request.budget_bytes

    def _unpinnable_bytes(self, model: PlacedModel) -> int:
        """Measure how far streamed columns are beyond their limit."""
        limit_bytes = self.request.pinned_limit_bytes
        return 0 if limit_bytes is None else model.total(packed_stream_bytes) - limit_bytes

    def _counted(self, ring: StreamRing) -> StreamRing:
        return LEAST_RING if self._for_prefill and not ring.slots else ring

    def _weights_ram_bytes(self) -> int | None:
        """RAM that is left for host and streamed columns, when every Linear is on the device; None: no limit."""
        request = self.request
        if request.ram_budget_bytes is None:
            return None
        return request.ram_budget_bytes - sum(fixed_ram_bytes(request.other_ram_bytes, self.placer.whole).values())
