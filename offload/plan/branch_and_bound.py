"""Mixed-integer linear programs (MILPs) of a few binary variables, by branch and bound over linear programs (HiGHS).

HiGHS has a solver of its own for these, which now and then prints a line for its developers, past all its options. It
goes to file descriptor 1, which is the whole process's: nothing here may redirect it while other threads write.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_WHOLE = 1e-6  # how far from a whole number a variable may be
_MOST_SOLVED = 500  # linear programs times binary variables: tenths of a second, and all choices of five variables


@dataclass(frozen=True)
class Minimum:
    """The variables `x` of the best solution found, and a value below which none is.

    That is the solution's own, about, unless the work came to its bound and the search was not `finished`.
    """

    x: Vector
    bound: float
    finished: bool


@dataclass(frozen=True)
class Milp:
    """All x with `lower <= x <= upper` and `rows @ x <= most`, where the variables `binary` (indices) are 0 or 1."""

    lower: Vector
    upper: Vector
    rows: Vector  # (R, V)
    most: Vector  # (R,), inf where a row has no bound
    binary: npt.NDArray[np.intp]

    def minimise(self, objective: Vector, gap: float) -> Minimum | None:
        """The minimum of `objective`, or within `gap` of it, relative; None where none is found.

        The search ends early after a number of linear programs that depends on the binary variables alone.
        """
        best, best_value = None, np.inf
        left = _MOST_SOLVED // max(1, len(self.binary))
        numbers, tried = count(), set()
        open_nodes = [(-np.inf, next(numbers), self.lower, self.upper)]
        while open_nodes:
            bound, _, lower, upper = heapq.heappop(open_nodes)
            if _is_no_better(bound, best_value, gap):
                break
            if left <= 0:
                best = self._rounded_down(objective, lower, upper) if best is None else best
                return None if best is None else Minimum(best, bound, finished=False)
            left -= 1
            x = self._relaxed(objective, lower, upper)
            if x is None or _is_no_better(value := float(objective @ x), best_value, gap):
                continue
            if self._is_whole(x):
                best, best_value = x, value
                continue
            # Rounded up it is a solution, and often as good as the best.
            rounded = np.clip(np.ceil(x[self.binary] - _WHOLE), lower[self.binary], upper[self.binary])
            if rounded.tobytes() not in tried:
                tried.add(rounded.tobytes())
                left -= 1
                fixed = self._relaxed(objective, *_with(lower, upper, self.binary, rounded))
                if fixed is not None and objective @ fixed < best_value:
                    best, best_value = fixed, float(objective @ fixed)
            for nodes in self._branches(x, lower, upper):
                heapq.heappush(open_nodes, (value, next(numbers), *nodes))
        return None if best is None else Minimum(best, best_value, finished=True)

    def _relaxed(self, objective: Vector, lower: Vector, upper: Vector) -> Vector | None:
        """The minimum with binary variables anywhere in their bounds."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # a third of a second; not every plan needs it

        bounds, constraints = Bounds(lower, upper), LinearConstraint(self.rows, ub=self.most)
        result = milp(objective, bounds=bounds, constraints=constraints)
        return None if result.x is None else np.asarray(result.x)

    def _rounded_down(self, objective: Vector, lower: Vector, upper: Vector) -> Vector | None:
        """A solution, where there is one that uses less of what all share than the relaxed one."""
        x = self._relaxed(objective, lower, upper)
        if x is None:
            return None
        rounded = np.maximum(np.floor(x[self.binary] + _WHOLE), lower[self.binary])
        return self._relaxed(objective, *_with(lower, upper, self.binary, rounded))

    def _is_whole(self, x: Vector) -> bool:
        return bool(np.all(np.abs(x[self.binary] - np.round(x[self.binary])) < _WHOLE))

    def _branches(self, x: Vector, lower: Vector, upper: Vector) -> Iterator[tuple[Vector, Vector]]:
        """Both values of the binary variable that is the farthest from either, weighed by what it counts for."""
        fractions = np.abs(x[self.binary] - np.round(x[self.binary]))
        chosen = self.binary[np.argmax(fractions * np.abs(self.rows).max(0)[self.binary])]
        for value in (1.0, 0.0):
            yield _with(lower, upper, chosen, value)


def _is_no_better(value: float, best: float, gap: float) -> bool:
    return value >= best - gap * abs(best)


def _with(lower: Vector, upper: Vector, which: Any, values: Any) -> tuple[Vector, Vector]:
    """The bounds with some variables fixed."""
    lower, upper = lower.copy(), upper.copy()
    lower[which] = upper[which] = values
    return lower, upper
