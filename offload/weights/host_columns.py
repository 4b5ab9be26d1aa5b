"""The host columns of Linears: where they lie, and as a plan keeps them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from offload.plan.plan import HostTier, LinearPlacement
from offload.storage.stored_weight import StoredWeight
from offload.weights.ram import read_into_ram
from offload.weights.requantise import requantise_into_ram


def host_columns(placements: Iterable[LinearPlacement], weights: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """The host columns of whole `weights` where they lie, by Linear; of those that have any."""
    return {
        placement.linear.name: weights[placement.linear.name].columns(placement.host.start, placement.host.stop)
        for placement in placements
        if len(placement.host)
    }


def load_host_columns(
    placements: Sequence[LinearPlacement],
    weights: Mapping[str, StoredWeight],
    into_ram: bool,
    on_bytes: Callable[[int], None],
) -> dict[str, StoredWeight]:
    """The host columns of whole `weights` as the plan keeps them, by Linear.

    Those of tier RAM are read into it, unless `into_ram` leaves that to the system, which has mapped pages. Those that
    are quantised on load are in RAM, whatever it takes. `on_bytes` is called with the bytes of every part. Raises
    OffloadError for a file that has become shorter or cannot be read.
    """
    columns = host_columns(placements, weights)
    on_host = [placement for placement in placements if len(placement.host)]
    made = {p.linear.name: p.host_blocks for p in on_host if p.host_blocks and p.host_format is not p.linear.format}
    read = [p.linear.name for p in on_host if into_ram and p.tier is HostTier.RAM and p.linear.name not in made]
    columns |= read_into_ram({name: columns[name] for name in read}, on_bytes)
    columns |= requantise_into_ram({name: columns[name] for name in made}, made, on_bytes)
    return columns
