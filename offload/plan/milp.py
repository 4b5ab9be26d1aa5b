"""The placement as a mixed-integer linear program (MILP) over kinds of Linear groups.

Groups that look alike (the q/k/v of every layer) share one pair of fractions: one variable per Linear would be
degenerate, and optimal vertices bunch the streamed columns together and stall the ring. For each kind of group:

    r, s in [0, 1]   parts of its movable columns that are resident and streamed
    z in {0, 1}      whether the device is used at all, which costs a round trip
    t >= 0           the time of one level

    minimise S subject to, for every kind and for the step,
    t >= z * trip + r * resident + s * streamed               the device's side
    t >= (1 - r - s) * host + immovable host columns          the host's side
    e >= s * bus - t - what comes before the level            a level's pieces that have to be in the ring already
    e <= ring
    S >= sum of levels;  S >= sum of s * bus;  S >= RAM bytes / RAM rate;  S >= file bytes / disk rate
    a >= z * x + (r + s) * y;  resident bytes + a <= VRAM;  streamed bytes <= pinned limit
    host + streamed - file bytes <= RAM

A second solve gives up a thousandth of S and asks least of the ring: streamed columns go where there is time for
them, so that the replay hardly stalls, and equal questions have equal answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from offload.plan.branch_and_bound import Milp, Minimum

_SLACK = 1e-3  # of the best time, which the second solve gives up for a ring that seldom has to be full
_GAP = 1e-4  # relative, between the best solution found and the bound


@dataclass(frozen=True)
class GroupKind:
    """Groups that are placed alike. Times are of one group with all its movable columns in one place."""

    count: int
    nbytes: float  # movable, as stored, and as resident columns are
    host_nbytes: float  # the same columns as streamed and host ones are kept
    before_s: float  # islands and attention before the level
    host_s: float
    immovable_s: float
    resident_s: float
    streamed_s: float  # launches of the pieces included
    trip_s: float
    bus_s: float
    x_bytes: float  # of VRAM, when any column is on the device
    y_bytes: float  # of VRAM, when all columns are
    least_streamed: float = 0.0
    fixed_resident: float | None = None


@dataclass(frozen=True)
class Limits:
    """The limits that all groups share. None: no limit."""

    vram_bytes: float
    pinned_bytes: float | None
    ram_bytes: float | None  # for host and streamed columns
    immovable_bytes: float  # on the host whatever happens
    ring_s: float  # the time in which the ring is filled
    ram_bytes_per_s: float
    disk_bytes_per_s: float
    start_s: float  # before the first level
    least_activation_bytes: float = 0.0  # of VRAM, whatever is on the device


@dataclass(frozen=True)
class Solution:
    """Fractions for each kind of group, their step, and a time below which no placement within the limits comes.

    The two times differ where the search ended before it was `finished`.
    """

    shares: tuple[tuple[float, float], ...]  # resident, streamed
    step_s: float
    bound_s: float
    finished: bool


class PlacementMilp:
    """Variables in this order: r, s, z, t for every kind; then e, a in GB, S and the file bytes, in GB."""

    def __init__(self, kinds: Sequence[GroupKind], limits: Limits) -> None:
        self._count = count = len(kinds)
        self._size = 4 * count + 4
        self._rows: list[np.ndarray] = []  # type: ignore[type-arg]
        self._most: list[float] = []
        gigabytes = [kind.count * kind.nbytes / 1e9 for kind in kinds]
        host = [kind.count * kind.host_nbytes / 1e9 for kind in kinds]
        streamed = {count + i: 1e-3 * nbytes for i, nbytes in enumerate(host)}
        touches = {2 * count + i: 1e-6 * kind.count for i, kind in enumerate(kinds)}
        self._hurry = self._row({self._size - 4: 1e3} | streamed | touches)
        self._lower, self._upper = np.zeros(self._size), np.ones(self._size)
        self._upper[3 * count :] = np.inf
        self._upper[-4] = limits.ring_s
        self._lower[-3] = limits.least_activation_bytes / 1e9
        for i, kind in enumerate(kinds):
            self._level(i, kind)
        self._shared(kinds, limits, gigabytes, host)

    def fastest(self) -> Solution | None:
        """The fractions of the shortest step; None when nothing is within the limits."""
        found = self._minimise(self._row({self._size - 2: 1.0}))
        if found is None:
            return None
        step_s = float(found.x[-2])
        return Solution(self._shares(found.x), step_s, step_s if found.finished else found.bound, found.finished)

    def smoothest(self, fastest: Solution) -> Solution:
        """Fractions about as good that ask least of the ring; the same where the solver finds none."""
        found = self._minimise(self._hurry, most_s=fastest.step_s * (1 + _SLACK) + 1e-9)
        return fastest if found is None else replace(fastest, shares=self._shares(found.x))

    def _shares(self, x: "np.ndarray") -> tuple[tuple[float, float], ...]:  # type: ignore[type-arg]
        resident, streamed = np.clip(x[: self._count], 0, 1), np.clip(x[self._count : 2 * self._count], 0, 1)
        return tuple((round(float(r), 9), round(float(s), 9)) for r, s in zip(resident, streamed, strict=True))

    def _minimise(self, objective: "np.ndarray", most_s: float | None = None) -> Minimum | None:  # type: ignore[type-arg]
        """The variables at the minimum of `objective`, with S at most `most_s`; None when there is none."""
        upper = self._upper.copy()
        if most_s is not None:
            upper[-2] = most_s
        binary = np.arange(2 * self._count, 3 * self._count)
        rows, most = np.array(self._rows), np.array(self._most)
        return Milp(self._lower, upper, rows, most, binary).minimise(objective, _GAP)

    def _level(self, i: int, kind: GroupKind) -> None:
        r, s, z, t = (i + part * self._count for part in range(4))
        if kind.fixed_resident is not None:
            self._lower[r] = self._upper[r] = kind.fixed_resident
        if kind.nbytes == 0:
            self._upper[r] = self._upper[s] = 0.0
        self._lower[s] = kind.least_streamed
        self._at_most({r: 1.0, s: 1.0, z: -1.0}, 0.0)
        self._at_most({z: kind.trip_s, r: kind.resident_s, s: kind.streamed_s, t: -1.0}, 0.0)
        self._at_most({r: -kind.host_s, s: -kind.host_s, t: -1.0}, -kind.host_s - kind.immovable_s)
        self._at_most({s: kind.bus_s, t: -1.0, self._size - 4: -1.0}, kind.before_s)
        x, y = kind.x_bytes / 1e9, kind.y_bytes / 1e9
        self._at_most({z: x, r: y, s: y, self._size - 3: -1.0}, 0.0)

    def _shared(
        self, kinds: Sequence[GroupKind], limits: Limits, gigabytes: Sequence[float], host: Sequence[float]
    ) -> None:
        count, step, file = self._count, self._size - 2, self._size - 1
        kinds_by_number = list(enumerate(kinds))
        before_s = limits.start_s + sum(kind.count * kind.before_s for kind in kinds)
        self._at_most({3 * count + i: float(kind.count) for i, kind in kinds_by_number} | {step: -1.0}, -before_s)
        self._at_most({count + i: kind.count * kind.bus_s for i, kind in kinds_by_number} | {step: -1.0}, 0.0)
        self._at_most({i: gigabytes[i] for i in range(count)} | {self._size - 3: 1.0}, limits.vram_bytes / 1e9)
        if limits.pinned_bytes is not None:
            self._at_most({count + i: host[i] for i in range(count)}, limits.pinned_bytes / 1e9)
        # Bytes in RAM: all but those of the resident columns; streamed ones take what host ones do.
        all_host = sum(host) + limits.immovable_bytes / 1e9
        in_ram = {i: -host[i] for i in range(count)}
        ram_rate = limits.ram_bytes_per_s / 1e9
        self._at_most(in_ram | {step: -ram_rate}, -all_host)
        self._at_most({file: 1.0, step: -limits.disk_bytes_per_s / 1e9}, 0.0)
        if limits.ram_bytes is None:
            self._upper[file] = 0.0
        else:
            self._at_most(in_ram | {file: -1.0}, limits.ram_bytes / 1e9 - all_host)

    def _at_most(self, coefficients: dict[int, float], most: float) -> None:
        self._rows.append(self._row(coefficients))
        self._most.append(most)

    def _row(self, coefficients: dict[int, float]) -> "np.ndarray":  # type: ignore[type-arg]
        row = np.zeros(self._size)
        for number, value in coefficients.items():
            row[number] += value
        return row
