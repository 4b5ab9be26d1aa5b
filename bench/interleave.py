"""Compare contestants by turns, A B A B ..., so that a machine that slows down slows all of them alike.

Ratios are taken inside each round, where conditions are nearly equal, and then their median: on a shared
machine that is steadier than the ratio of two medians.
"""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Readings by round, in the one unit that all contestants report: tokens/s, or s."""

    names: tuple[str, ...]
    rounds: tuple[tuple[float, ...], ...]  # (rounds, contestants)

    def readings(self, name: str) -> tuple[float, ...]:
        """All readings of one contestant, in order. Raises KeyError for an unknown name."""
        if name not in self.names:
            raise KeyError(f"no contestant {name!r}; there are {', '.join(self.names)}")
        return tuple(row[self.names.index(name)] for row in self.rounds)

    def median(self, name: str) -> float:
        """Median reading of one contestant, in the contestants' unit."""
        return statistics.median(self.readings(name))

    def ratios(self, name: str, base: str) -> tuple[float, ...]:
        """`name` / `base`, one number for each round."""
        return tuple(a / b for a, b in zip(self.readings(name), self.readings(base), strict=True))

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of `name` / `base`; above 1 means `name` read higher."""
        return statistics.median(self.ratios(name, base))


def interleave(
    contestants: Mapping[str, Callable[[], float]],
    rounds: int,
    warmup: int = 0,
    told: Callable[[int, str, float], object] = lambda index, name, reading: None,
) -> Comparison:
    """Call every contestant once a round, in the order given; `rounds` rounds after `warmup` discarded ones.

    A contestant returns its own reading, such as decode tokens/s; `timed` and `command` make one that
    returns seconds. `told` hears (round, name, reading) after each counted run, for a progress line. What a
    contestant raises ends the comparison. Raises ValueError for fewer than two contestants, for no round, and
    for a reading that is not above 0.
    """
    if len(contestants) < 2:
        raise ValueError(f"a comparison needs two contestants or more, got {len(contestants)}")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be 1 or more and warmup 0 or more, got {rounds} and {warmup}")
    rows: list[tuple[float, ...]] = []
    for index in range(-warmup, rounds):
        row: list[float] = []
        for name, run in contestants.items():
            reading = run()
            if not reading > 0:  # also refuses NaN, which would pass silently through a median
                raise ValueError(f"{name} returned {reading}; readings must be above 0")
            row.append(reading)
            if index >= 0:
                told(index, name, reading)
        if index >= 0:
            rows.append(tuple(row))
    return Comparison(tuple(contestants), tuple(rows))


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """A contestant that returns the wall-clock seconds of `run`."""

    def contestant() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return contestant


def command(arguments: Sequence[str]) -> Callable[[], float]:
    """A contestant that runs a program and returns its wall-clock seconds, output thrown away.

    It raises subprocess.CalledProcessError when the exit status is not 0, FileNotFoundError when there is no
    such program.
    """
    quiet = subprocess.DEVNULL
    return timed(lambda: subprocess.run(arguments, check=True, stdin=quiet, stdout=quiet, stderr=quiet))
