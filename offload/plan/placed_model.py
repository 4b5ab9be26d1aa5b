"""A model as placed, told of groups that are placed alike: large models have hundreds, and of few sorts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from offload.plan.plan import LinearPlacement, by_group
from offload.spec.linear import LinearSpec


@dataclass(frozen=True)
class PlacedGroup:
    """Linears that read the same input, as placed; `count` groups of the model are placed like these."""

    members: tuple[LinearPlacement, ...]
    count: int


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """The placement of every Linear, and the groups that differ, each once.

    `rows` has a placement for each Linear, in order, but for those that are placed alike that of one of them, the same
    object. `levels` has the number in `groups` of each group of the model, in running order.
    """

    linears: Sequence[LinearSpec]
    rows: tuple[LinearPlacement, ...]
    names: tuple[str, ...]  # of the levels: their groups'
    groups: tuple[PlacedGroup, ...]
    levels: tuple[int, ...]

    @classmethod
    def tallied(
        cls, linears: Sequence[LinearSpec], rows: Sequence[LinearPlacement], groups: Sequence[Sequence[int]]
    ) -> Self:
        """Count the groups, given as numbers of Linears, whose rows are the same objects."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, group in enumerate(groups):
            alike.setdefault(tuple(id(rows[i]) for i in group), []).append(number)
        levels = [0] * len(groups)
        found: list[PlacedGroup] = []
        for numbers in alike.values():
            for number in numbers:
                levels[number] = len(found)
            members = tuple(_of(linears[i], rows[i]) for i in groups[numbers[0]])
            found.append(PlacedGroup(members, len(numbers)))
        names = tuple(linears[group[0]].group for group in groups)
        return cls(linears, tuple(rows), names, tuple(found), tuple(levels))

    @classmethod
    def of(cls, placements: Sequence[LinearPlacement]) -> Self:
        """The placements of a plan, each group by itself."""
        groups = by_group(placements)
        return cls(
            linears=[p.linear for p in placements],
            rows=tuple(placements),
            names=tuple(members[0].linear.group for members in groups),
            groups=tuple(PlacedGroup(tuple(members), 1) for members in groups),
            levels=tuple(range(len(groups))),
        )

    @cached_property
    def placements(self) -> tuple[LinearPlacement, ...]:
        """Every Linear's own placement."""
        return tuple(_of(linear, row) for linear, row in zip(self.linears, self.rows, strict=True))

    @property
    def distinct(self) -> list[LinearPlacement]:
        """The placements of the groups that differ."""
        return [placement for group in self.groups for placement in group.members]

    @property
    def on_device(self) -> bool:
        """True when any column is multiplied by the device, be it in prefill only."""
        return any(placement.on_device for placement in self.distinct)

    def total(self, of_group: Callable[[Sequence[LinearPlacement]], int]) -> int:
        """Add up what is counted group by group."""
        return sum(group.count * of_group(group.members) for group in self.groups)


def _of(linear: LinearSpec, row: LinearPlacement) -> LinearPlacement:
    """The placement of this Linear, which is placed like `row`."""
    return row if row.linear is linear else replace(row, linear=linear)
