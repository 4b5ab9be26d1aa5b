"""Shares made to fill a budget: a little smaller or larger, by what rounding to tiles took too much or left."""

from collections.abc import Callable

from offload.plan.shares import ModelShares

_SEARCH_STEPS = 20
_NEAR = 1 / 4096  # of all bytes between the ends of a search: near enough


def shrink(shares: ModelShares, excess_bytes: Callable[[ModelShares], int]) -> ModelShares:
    """The shares with all resident ones made smaller by one factor, so that nothing is in excess."""
    return shares.with_resident(largest_part(lambda part: excess_bytes(shares.with_resident(part))))


def grow(shares: ModelShares, excess_bytes: Callable[[ModelShares], int]) -> ModelShares:
    """The shares with one part of what is not resident made so, as much as there is room for."""
    return shares.grown(largest_part(lambda part: excess_bytes(shares.grown(part))))


def largest_part(excess_bytes: Callable[[float], int]) -> float:
    """About the largest part from 0 to 1 with nothing in excess; 0 where there is none.

    False position, with a halving now and then: bytes grow about evenly.
    """
    low, high = 0.0, 1.0
    above = excess_bytes(high)
    if above <= 0:
        return high
    below = excess_bytes(low)
    near = (above - below) * _NEAR
    for step in range(_SEARCH_STEPS):
        if not -below > near:
            break
        at = (low + high) / 2 if step % 3 == 2 else low + (high - low) * below / (below - above)
        over = excess_bytes(at)
        if over <= 0:
            low, below = at, over
        else:
            high, above = at, over
    return low
