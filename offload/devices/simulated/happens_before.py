"""Happens-before: vector clocks that tell whether one access to memory is ordered after another.

Every stream is an actor and numbers its operations; an actor's `Clock` holds, for every actor, the number of
the last operation that it is ordered after. Timing plays no part, so a missing wait is found even when the
operations happen to run in the right order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

Clock = dict[int, int]  # actor -> the last of its operations that is known to be done


class StreamOrderError(AssertionError):
    """Memory was used without waiting for work that uses the same bytes."""


def learn(clock: Clock, other: Clock) -> None:
    """Add to `clock` everything that `other` knows."""
    for actor, number in other.items():
        if clock.get(actor, 0) < number:
            clock[actor] = number


@dataclass(frozen=True)
class Access:
    """Operation `number` of `actor` reads or writes bytes `start <= byte < stop` of a block."""

    start: int
    stop: int
    actor: int
    number: int
    writes: bool
    what: str

    def known_to(self, clock: Clock) -> bool:
        """True when the owner of `clock` is ordered after this access."""
        return clock.get(self.actor, 0) >= self.number

    def outside(self, other: "Access") -> Iterator["Access"]:
        """The parts of this access that `other` does not cover."""
        if self.start < other.start:
            yield replace(self, stop=other.start)
        if other.stop < self.stop:
            yield replace(self, start=other.stop)


class AccessHistory:
    """The accesses to one block of memory that later ones have to be ordered after."""

    def __init__(self, block: str) -> None:
        self._block = block
        self._accesses: list[Access] = []

    def add(self, new: Access, clock: Clock) -> None:
        """Check `new` against the accesses so far, then remember it. `clock` is what its actor knows.

        Raises StreamOrderError when two accesses to the same bytes, one of them a write, are not ordered.
        """
        kept: list[Access] = []
        touched: list[Access] = []
        for old in self._accesses:
            (kept if old.stop <= new.start or new.stop <= old.start else touched).append(old)
        for old in touched:
            if (old.writes or new.writes) and not old.known_to(clock):
                verb = "writes" if new.writes else "reads"
                raise StreamOrderError(
                    f"{new.what} {verb} bytes {new.start}..{new.stop} of {self._block}"
                    f" without waiting for {old.what} (bytes {old.start}..{old.stop})"
                )
            # Whoever is ordered after a write is ordered after all that the write waited for, and whoever is
            # ordered after an actor's later read is ordered after its earlier ones.
            if new.writes or (old.actor == new.actor and not old.writes):
                kept.extend(old.outside(new))
            else:
                kept.append(old)
        kept.append(new)
        self._accesses = kept

    def require_known(self, clock: Clock, action: str) -> None:
        """Raise StreamOrderError unless the owner of `clock` is ordered after every access."""
        for old in self._accesses:
            if not old.known_to(clock):
                raise StreamOrderError(f"{action} of {self._block} without waiting for {old.what}")
