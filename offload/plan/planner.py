"""Decide where the columns go: candidates, the MILP's among them, are replayed; the fastest one wins."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from offload.plan.fitting import SEARCH_STEPS, grow, largest_part, shrink
from offload.plan.kinds import MOST_KINDS, Kinds
from offload.plan.milp import PlacementMilp, Solution
from offload.plan.packing import packed_stream_bytes
from offload.plan.placing import (
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
from offload.plan.plan import LinearPlacement, Plan, StreamRing
from offload.plan.polishing import polish
from offload.plan.prefill import LEAST_RING, may_stream, prefill_phase, streaming_all
from offload.plan.ram_tiers import check_ram
from offload.spec.units import MIB

_RINGS = (StreamRing(4, MIB), StreamRing(4, 2 * MIB), StreamRing(4, 4 * MIB), StreamRing(16, 4 * MIB))
_SIMPLE_RING = StreamRing(4, 4 * MIB)
_WORTH = 0.98  # what uses the device has to be this much faster than all on the host
_TIE = 0.999  # what does more has to be this much faster than what does less
_POLISHED = 0.995  # nearer to the bound than this, a placement is not polished
_MOST_SEARCHED = 1000  # Linears: large models have hundreds, and every trial looks at each
_MOST_NAMED = 200  # kinds of Linears by name: models have ten or so
_MOST_PLACED = 4096  # Linears that are placed at all
_FEW_STEPS = 6
_PREFILL_WORTH = 0.8  # columns are given up for a prefill that is this much faster, where decode loses 1 - _WORTH


def make_plan(request: PlanRequest, is_final: bool = True) -> Plan:
    """The fastest placement within the budgets, as the replay has it; a percent or two slower unless it `is_final`.

    Never slower there than everything on the host; never more than a thousandth slower than filling VRAM layer by
    layer, filling it with an equal share of every Linear, or streaming all that it does not hold. But decode may lose
    a fiftieth for a prefill that is faster by a quarter, or where the device holds all and leaves the CPU alone.
    Raises RamBudgetError when all of them need more RAM than there may be.
    """
    decode = _Search(request, for_prefill=False, is_final=is_final)
    milps = decode.milps()
    bound_s = min((fastest.bound_s for fastest, _, _ in milps), default=None)
    plan = _plan_for_prefill(request, decode, is_final) if milps else None
    if plan is None or bound_s is None or bound_s < plan.predicted.decode_step_s * _WORTH:
        for_decode = _planned(decode, milps)
        if plan is None or not _is_worth_it(plan, for_decode):
            plan = for_decode
    check_ram(plan.ram_bytes, plan.ram_budget_bytes, request.most_ram_bytes)
    return replace(plan, bound_s=bound_s, notes=(*plan.notes, *decode.notes))


def is_searched(request: PlanRequest) -> bool:
    """Tell whether the model is small enough to search its best placement; else only the simplest ones are compared."""
    return len(request.linears) <= _MOST_SEARCHED and _named_kinds(request) <= _MOST_NAMED


def _named_kinds(request: PlanRequest) -> int:
    return len({linear.kind for linear in request.linears})


def _why_short(request: PlanRequest) -> str:
    count = len(request.linears)
    how = "each gets an equal share of the GPU, or none" if count <= _MOST_PLACED else "the GPU gets none"
    return (
        f"{count:,} Linears of {_named_kinds(request):,} kinds are too many to look for their best placement "
        f"(up to {_MOST_SEARCHED:,} of {_MOST_NAMED} kinds are not): {how}"
    )


def _plan_for_prefill(request: PlanRequest, decode: "_Search", is_final: bool) -> Plan | None:
    """The plan with all on the device or with room for what prefill streams; None where that cannot be or helps not."""
    if decode.holds_all():
        plan = place(request, lambda _: Shares(1.0), NO_RING)
    elif may_stream(request):
        prefill = _Search(request, for_prefill=True, is_final=is_final)
        plan = _planned(prefill, prefill.milps())
        if not plan.prefill_tokens:
            return None
    else:
        return None
    on_host = predict(request, place_linears(request, lambda _: Shares()), NO_RING, request.depth)
    fits_ram = plan.total_ram_bytes <= (request.ram_budget_bytes or inf)
    is_faster = plan.predicted.decode_step_s < on_host.decode_step_s * _WORTH
    return plan if fits_ram and is_faster and plan.total_vram_bytes <= request.budget_bytes else None


def _is_worth_it(plan: Plan, for_decode: Plan) -> bool:
    """Tell whether what `plan` gives to prefill is worth what decode loses, or that it holds all."""
    holds_all = not any(len(placement.streamed_in(prefill=True)) for placement in plan.placements)
    gains = holds_all or plan.prefill.step_s < for_decode.prefill.step_s * _PREFILL_WORTH
    return gains and plan.predicted.decode_step_s * _WORTH <= for_decode.predicted.decode_step_s


@dataclass(frozen=True)
class _Candidate:
    shares: SharesOf
    ring: StreamRing
    placements: tuple[LinearPlacement, ...]
    step_s: float
    fits: bool


_Milps = list[tuple[Solution, StreamRing, PlacementMilp]]


def _planned(search: "_Search", milps: _Milps) -> Plan:
    best = search.best(milps)
    if search.is_short:
        return place(search.request, best.shares, best.ring)
    shares, ring, prefill_tokens = prefill_phase(search.request, best.shares, best.ring, best.placements)
    return place(search.request, shares, ring, prefill_tokens)


class _Search:
    """For the fastest placement; `for_prefill` leaves room for all that prefill may stream."""

    def __init__(self, request: PlanRequest, for_prefill: bool, is_final: bool) -> None:
        self.request = request
        self._is_final = is_final
        self._for_prefill = for_prefill
        self.notes: tuple[str, ...] = ()  # what bounded the search
        self.is_short = not is_searched(request)
        if self.is_short and request.budget_bytes:
            self.notes += (_why_short(request),)

    def holds_all(self) -> bool:
        """Tell whether the budget holds every Linear that may be on the device."""
        return self._excess_bytes(lambda _: Shares(1.0), NO_RING) <= 0

    def best(self, milps: _Milps) -> _Candidate:
        """The fastest placement, or where it hardly differs, one that does less."""
        on_host = self._candidate(lambda _: Shares(), NO_RING)
        if not self._may_use_device():
            return on_host
        candidates = [self._candidate(shares, ring) for shares, ring in self._simple()]
        known_s = min((c.step_s for c in (on_host, *candidates) if c.fits), default=inf)
        fitting = [c for c in (*candidates, *self._solved(milps, known_s)) if c.fits]
        if not fitting:
            return on_host
        least_s = min(candidate.step_s for candidate in fitting)
        best = next(candidate for candidate in fitting if candidate.step_s * _TIE <= least_s)
        if self._is_final and milps and best.step_s * _POLISHED > milps[0][0].bound_s:
            best = self._polished(best)
        return on_host if on_host.fits and best.step_s >= on_host.step_s * _WORTH else best

    def _polished(self, best: _Candidate) -> _Candidate:
        """`best` after small moves."""

        def faster(shares: SharesOf, below_s: float) -> float | None:
            placements = place_linears(self.request, shares)
            if predict(self.request, placements, best.ring, self.request.depth).decode_step_s >= below_s:
                return None  # most are, and whether they fit takes as long to find out
            candidate = self._candidate(shares, best.ring)
            return candidate.step_s if candidate.fits and candidate.step_s < below_s else None

        def fill(shares: SharesOf) -> SharesOf:
            return grow(shares, lambda shares: self._excess_bytes(shares, best.ring))

        shares = polish(best.shares, best.step_s, Kinds(self.request).movable, faster, fill)
        return self._candidate(shares, best.ring)

    def _simple(self) -> Iterator[tuple[SharesOf, StreamRing]]:
        """Place as other programs do: an equal share of everything, whole layers first, and the rest streamed."""
        steps = _FEW_STEPS if self.is_short else SEARCH_STEPS
        share = largest_part(lambda part: self._excess_bytes(lambda _: Shares(part), NO_RING), steps)
        yield (lambda _: Shares(share)), NO_RING
        if self.is_short:
            return
        movable = [linear.name for linear in self.request.linears if self.request.movable(linear)]
        count = self._largest_count(movable)
        first = frozenset(movable[:count])
        yield (lambda linear: Shares(1.0 if linear.name in first else 0.0)), NO_RING
        streams = largest_part(lambda part: self._excess_bytes(lambda _: Shares(part, 1.0 - part), _SIMPLE_RING))
        if self.request.pinned_limit_bytes is None and streams > 0:
            yield (lambda _: Shares(streams, 1.0 - streams)), _SIMPLE_RING

    def _largest_count(self, names: list[str]) -> int:
        """Count the Linears that, in order, fit the budget whole."""
        low, high = 0, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            held = frozenset(names[:middle])
            over = self._excess_bytes(lambda linear, held=held: Shares(1.0 if linear.name in held else 0.0), NO_RING)  # type: ignore[misc]
            low, high = (middle, high) if over <= 0 else (low, middle - 1)
        return low

    def milps(self) -> _Milps:
        """Solve the MILP for every ring, fastest first; nothing where no column fits the device."""
        request = self.request
        if self.is_short or not self._may_use_device():
            return []
        kinds, ram_bytes = Kinds(request), self._weights_ram_bytes()
        whole = place_linears(request, lambda _: Shares(1.0))
        least_bytes = vram_bytes(request, whole, NO_RING)["activations"] if self._for_prefill else 0
        fixed_bytes = sum(request.fixed_vram_bytes.values())
        streams = any(request.streamable(linear) for linear in request.linears)
        found = []
        for ring in (NO_RING, *_RINGS) if streams else (NO_RING,):
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

    def _solved(self, milps: _Milps, known_s: float) -> Iterator[_Candidate]:
        """Yield what may be faster than `known_s`."""
        kinds = Kinds(self.request)
        for fastest, ring, milp in milps:
            if fastest.bound_s >= known_s * _TIE:
                break
            candidate = self._fit(kinds.shares(milp.smoothest(fastest)), ring)
            yield candidate
            if candidate.fits:
                known_s = min(known_s, candidate.step_s)

    def _may_use_device(self) -> bool:
        request = self.request
        is_placed = request.budget_bytes > 0 and len(request.linears) <= _MOST_PLACED
        return is_placed and any(request.movable(linear) for linear in request.linears)

    def _fit(self, shares: SharesOf, ring: StreamRing) -> _Candidate:
        """The shares, made smaller by what rounding and alignment took too much, or larger where that is faster."""
        request = self.request

        def excess_bytes(shares: SharesOf) -> int:
            return self._excess_bytes(shares, ring)

        def pinned(shares: SharesOf) -> _Candidate:
            def scaled(part: float) -> SharesOf:
                return lambda linear: replace(shares(linear), streamed=shares(linear).streamed * part)

            if request.pinned_limit_bytes is None:
                return self._candidate(shares, ring)
            part = largest_part(lambda part: _unpinnable_bytes(request, place_linears(request, scaled(part))))
            return self._candidate(scaled(part) if part < 1 else shares, ring)

        shrunk = pinned(shrink(shares, excess_bytes))
        grown = pinned(grow(shares, excess_bytes))
        return grown if grown.fits and grown.step_s < shrunk.step_s else shrunk

    def _candidate(self, shares: SharesOf, ring: StreamRing) -> _Candidate:
        request = self.request
        placements = place_linears(request, shares)
        if not any(len(placement.streamed) for placement in placements):
            ring = NO_RING
        step_s = predict(request, placements, ring, request.depth).decode_step_s
        counted = place_linears(request, self._counted_shares(shares)) if self._for_prefill else placements
        is_within = fits(request, counted, self._counted(ring)) and _unpinnable_bytes(request, placements) <= 0
        return _Candidate(shares, ring, placements, step_s, is_within)

    def _excess_bytes(self, shares: SharesOf, ring: StreamRing) -> int:
        """Measure how far shares are above the budget of VRAM, negative below."""
        placements = place_linears(self.request, self._counted_shares(shares))
        taken = vram_bytes(self.request, placements, self._counted(ring))
        return sum(taken.values()) - self.request.budget_bytes

    def _counted(self, ring: StreamRing) -> StreamRing:
        return LEAST_RING if self._for_prefill and not ring.slots else ring

    def _counted_shares(self, shares: SharesOf) -> SharesOf:
        return streaming_all(self.request, shares) if self._for_prefill else shares

    def _weights_ram_bytes(self) -> int | None:
        """RAM that is left for host and streamed columns, when every Linear is on the device; None: no limit."""
        if self.request.ram_budget_bytes is None:
            return None
        whole = place_linears(self.request, lambda _: Shares(1.0))
        return self.request.ram_budget_bytes - sum(fixed_ram_bytes(self.request, whole).values())


def _unpinnable_bytes(request: PlanRequest, placements: tuple[LinearPlacement, ...]) -> int:
    """Measure how far streamed columns are beyond their limit."""
    limit_bytes = request.pinned_limit_bytes
    return 0 if limit_bytes is None else packed_stream_bytes(placements) - limit_bytes
