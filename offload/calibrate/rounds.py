"""Rounds of a measurement: as many as asked for, or as many as a time limit allows on a machine that is busy."""

from collections.abc import Iterator
from time import perf_counter


def rounds_within(count: int, longest_s: float) -> Iterator[bool]:
    """One warm-up round, False, then up to `count` rounds that count, True: at least one, whatever the time."""
    yield False
    began_s = perf_counter()
    for number in range(count):
        if number and perf_counter() - began_s > longest_s:
            return
        yield True
