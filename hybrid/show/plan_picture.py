"""Lays out the picture of a plan: a column for each layer, a row for each kind of Linear, coloured by place."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hybrid.show.report import rate
from offload.plan.plan import HostTier, LinearPlacement, Plan
from offload.spec.units import counted, format_bytes


class Place(StrEnum):
    """The places of columns, in the order in which a cell shows them from the bottom up."""

    RESIDENT = "resident in VRAM"
    STREAMED = "streamed from RAM at every step"
    RAM = "on the CPU, in RAM"
    FILE = "on the CPU, in a file"


# Okabe and Ito's colours, which people with any colour vision can tell apart; they differ in lightness too.
COLOURS: Mapping[Place, str] = {
    Place.RESIDENT: "#0072B2",
    Place.STREAMED: "#E69F00",
    Place.RAM: "#A9DCF5",
    Place.FILE: "#CC79A7",
}


@dataclass(frozen=True)
class ColumnShare:
    """A part of a Linear; `share` is of its columns, and the shares of a cell add up to 1."""

    place: Place
    share: float


@dataclass(frozen=True)
class Cell:
    """The Linears of one kind in one layer, by the numbers of their column and row in the picture."""

    column: int
    row: int
    parts: tuple[ColumnShare, ...]


@dataclass(frozen=True)
class Head:
    """A Linear outside the layers."""

    label: str  # kind and size
    parts: tuple[ColumnShare, ...]


@dataclass(frozen=True)
class LegendEntry:
    """The meaning of a colour, and how much of the weights it is."""

    place: Place
    text: str


@dataclass(frozen=True)
class PlanPicture:
    """The picture of a plan. `heads` are the Linears outside the layers, each a column of its own."""

    title: str
    subtitle: str
    layers: tuple[str, ...]
    rows: tuple[str, ...]  # kind and size
    cells: tuple[Cell, ...]
    heads: tuple[Head, ...]
    legend: tuple[LegendEntry, ...]


def plan_picture(plan: Plan) -> PlanPicture:
    """Lay out the picture of `plan`."""
    by_cell: dict[tuple[str, str], list[LinearPlacement]] = {}
    for placement in plan.placements:
        by_cell.setdefault((placement.linear.layer, placement.linear.kind), []).append(placement)
    layers = tuple(dict.fromkeys(layer for layer, _ in by_cell if layer))
    kinds = tuple(dict.fromkeys(kind for layer, kind in by_cell if layer))
    of_kind = {kind: [p for (layer, k), cell in by_cell.items() if layer and k == kind for p in cell] for kind in kinds}
    return PlanPicture(
        title=_title(plan),
        subtitle=_subtitle(plan),
        layers=layers,
        rows=tuple(_label(kind, of_kind[kind]) for kind in kinds),
        cells=tuple(
            Cell(layers.index(layer), kinds.index(kind), _parts(placements))
            for (layer, kind), placements in by_cell.items()
            if layer
        ),
        heads=tuple(
            Head(_label(kind, placements), _parts(placements))
            for (layer, kind), placements in by_cell.items()
            if not layer
        ),
        legend=_legend(plan.placements),
    )


def _place_bytes(placements: Iterable[LinearPlacement]) -> dict[Place, float]:
    """Bytes of weights in each place, as they are kept there."""
    held = dict.fromkeys(Place, 0.0)
    for placement in placements:
        held[Place.RESIDENT] += len(placement.resident) * placement.linear.column_bytes
        held[Place.STREAMED] += len(placement.streamed) * placement.linear.column_bytes
        host = Place.FILE if placement.tier is HostTier.FILE else Place.RAM
        held[host] += len(placement.host) * placement.host_column_bytes
    return held


def _parts(placements: Iterable[LinearPlacement]) -> tuple[ColumnShare, ...]:
    columns = dict.fromkeys(Place, 0)
    for placement in placements:
        columns[Place.RESIDENT] += len(placement.resident)
        columns[Place.STREAMED] += len(placement.streamed)
        columns[Place.FILE if placement.tier is HostTier.FILE else Place.RAM] += len(placement.host)
    total = sum(columns.values())
    return tuple(ColumnShare(place, count / total) for place, count in columns.items() if count)


def _legend(placements: Iterable[LinearPlacement]) -> tuple[LegendEntry, ...]:
    held = _place_bytes(placements)
    total = sum(held.values())
    return tuple(
        LegendEntry(place, f"{place}: {format_bytes(nbytes)}, {nbytes / total:.0%}")
        for place, nbytes in held.items()
        if nbytes
    )


def _label(kind: str, placements: Iterable[LinearPlacement]) -> str:
    return f"{kind}\n{format_bytes(sum(placement.linear.weight_bytes for placement in placements))}"


def _title(plan: Plan) -> str:
    rates = ", its rates estimated" if plan.machine.get("estimated") else ""
    budget = f"VRAM budget {format_bytes(plan.budget_bytes)}" if plan.budget_bytes else "no VRAM"
    return f"{plan.model} on {plan.machine['name']}{rates} · {budget}"


def _subtitle(plan: Plan) -> str:
    step = plan.predicted
    return (
        f"predicted {rate(step.decode_tokens_per_s)} with {counted(step.depth, 'token')} in the cache, "
        f"bound by {step.bound_by}"
        f" · VRAM {format_bytes(plan.total_vram_bytes)} · RAM {format_bytes(sum(plan.ram_bytes.values()))}"
    )
