"""Shares made to fill a budget: a little smaller or larger, by what rounding to tiles took too much or left."""

from collections.abc import Callable
from dataclasses import replace

from offload.plan.placing import Shares, SharesOf
from offload.spec.linear import LinearSpec

SEARCH_STEPS = 20
_NEAR = 1 / 4096  # of all bytes between the ends of a search: near enough


def shrink(shares: SharesOf, excess_bytes: Callable[[SharesOf], int]) -> SharesOf:
    """The shares with all resident ones made smaller by one factor, so that nothing is in excess."""

    def smaller(part: float) -> SharesOf:
        return lambda linear: replace(shares(linear), resident=shares(linear).resident * part)

    return smaller(largest_part(lambda part: excess_bytes(smaller(part))))


def grow(shares: SharesOf, excess_bytes: Callable[[SharesOf], int]) -> SharesOf:
    """The shares with one part of what is not resident made so, as much as there is room for.

    Only in Linears that are on the device already, since every other costs a round trip.
    """

    def larger(part: float) -> SharesOf:
        def of(linear: LinearSpec) -> Shares:
            wanted = shares(linear)
            if wanted.resident + wanted.streamed == 0:
                return wanted
            more = part * (1 - wanted.resident)
            return replace(wanted, resident=wanted.resident + more, streamed=wanted.streamed * (1 - part))

        return of

    return larger(largest_part(lambda part: excess_bytes(larger(part))))


def largest_part(excess_bytes: Callable[[float], int], steps: int = SEARCH_STEPS) -> float:
    """About the largest part from 0 to 1 with nothing in excess, after `steps` at most; 0 where there is none.

    False position, with a halving now and then: bytes grow about evenly.
    """
    low, high = 0.0, 1.0
    above = excess_bytes(high)
    if above <= 0:
        return high
    below = excess_bytes(low)
    near = (above - below) * _NEAR
    for step in range(steps):
        if not -below > near:
            break
        at = (low + high) / 2 if step % 3 == 2 else low + (high - low) * below / (below - above)
        over = excess_bytes(at)
        if over <= 0:
            low, below = at, over
        else:
            high, above = at, over
    return low
