"""Shares: the parts of a model's columns that are resident and streamed, before they are rounded to whole tiles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from offload.spec.linear import LinearSpec

Fractions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """The parts of a Linear's columns that are resident and streamed; what is left is host.

    `prefill` is the part that is streamed in prefill, where that is more.
    """

    resident: float = 0.0
    streamed: float = 0.0
    prefill: float = 0.0


SharesOf = Callable[[LinearSpec], Shares]


@dataclass(frozen=True, eq=False)
class ModelShares:
    """The shares of every Linear of a model, in its order: three arrays, each (L,)."""

    resident: Fractions
    streamed: Fractions
    prefill: Fractions

    @classmethod
    def of(cls, linears: Iterable[LinearSpec], shares: SharesOf) -> Self:
        """Ask `shares` of each Linear."""
        found = [shares(linear) for linear in linears]
        table = np.array([(s.resident, s.streamed, s.prefill) for s in found], np.float64).reshape(-1, 3)
        return cls(*table.T)

    @classmethod
    def equal(cls, count: int, resident: float = 0.0) -> Self:
        """The same resident share of each of `count` Linears, and no other."""
        return cls(np.full(count, resident), np.zeros(count), np.zeros(count))

    def with_resident(self, part: float) -> Self:
        """That part of the resident columns only."""
        return replace(self, resident=self.resident * part)

    def with_streamed(self, part: float) -> Self:
        """That part of the streamed columns only."""
        return replace(self, streamed=self.streamed * part)

    def with_prefill(self, prefill: Fractions) -> Self:
        """Stream these parts in prefill."""
        return replace(self, prefill=prefill)

    def grown(self, part: float) -> Self:
        """Also that part of what is not resident made so, in Linears with any column on the device.

        Every other one would cost a round trip.
        """
        used = self.resident + self.streamed > 0
        more = np.where(used, part * (1 - self.resident), 0.0)
        return replace(
            self, resident=self.resident + more, streamed=np.where(used, self.streamed * (1 - part), self.streamed)
        )
