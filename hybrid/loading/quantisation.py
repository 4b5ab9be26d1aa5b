"""Host columns block-quantised to int8 or int4: those a model comes with, and those quantised on load."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hybrid.errors import UsageError
from offload.plan.plan import LinearPlacement
from offload.spec.linear import REQUANTISED_BLOCK, Activations, LinearSpec, WeightFormat
from offload.spec.units import counted

if TYPE_CHECKING:
    from offload.host.backend import NumbaBackend


def host_format_of(text: str | None) -> WeightFormat | None:
    """Parse `--host-dtype`. Raises UsageError."""
    if text is None or text in (WeightFormat.INT8, WeightFormat.INT4):
        return None if text is None else WeightFormat(text)
    raise UsageError(f"--host-dtype {text}: must be int8 or int4")


def activations_asked(text: str | None) -> Activations | None:
    """Parse `--activations`. Raises UsageError."""
    if text is None or text in list(Activations):
        return None if text is None else Activations(text)
    raise UsageError(f"--activations {text}: must be int8 or float")


def quantisation_notes(linears: Sequence[LinearSpec], host_format: WeightFormat | None) -> list[str]:
    """Note the weights that are quantised on load, for the plan."""
    if host_format is None:
        return []
    chosen = [linear for linear in linears if linear.is_quantisable]
    if not chosen:
        return []
    last = f"{chosen[-1].kind} among them" if len(chosen) > 1 else chosen[-1].kind
    return [
        f"streamed and host columns of {counted(len(chosen), 'Linear')}, {last}, are quantised to {host_format} "
        f"on load, as asked: blocks of {REQUANTISED_BLOCK}, an fp16 scale each"
    ]


def without_effect(
    linears: Sequence[LinearSpec], host_format: WeightFormat | None, activations: Activations | None
) -> list[str]:
    """Note requests for quantised weights that this model has none for."""
    if host_format is not None and not any(linear.is_quantisable for linear in linears):
        return [f"--host-dtype {host_format}: no effect, no Linear of this model has float weights to quantise"]
    if activations is not None and host_format is None and all(linear.format.is_float for linear in linears):
        return [f"--activations {activations}: no effect, no Linear of this model has int8 or int4 weights"]
    return []


class HostQuantisation:
    """The kernels that host columns of Linears outside onnxruntime need which are block-quantised."""

    def __init__(self, placements: Iterable[LinearPlacement]) -> None:
        in_blocks = [placement for placement in placements if placement.host_blocks is not None]
        self._on_host = [placement for placement in in_blocks if len(placement.host)]
        self._making = {
            (p.linear.format, p.linear.layout, p.host_format)
            for p in in_blocks
            if p.linear.format.is_float and len(p.host) + len(p.streamed)
        }

    @property
    def makes_any(self) -> bool:
        """Tell whether anything is quantised on load."""
        return bool(self._making)

    def warm_up(self, backend: "NumbaBackend") -> None:
        """Compile everything that loading and multiplying needs."""
        from offload.host.quantised import QuantisedKind
        from offload.weights.requantise import warm_up

        kinds = set()
        for placement in self._on_host:
            assert placement.host_blocks is not None
            kinds.add(QuantisedKind.of(placement.host_blocks, placement.linear.activations))
        backend.warm_up_quantised(kinds)
        if self._making:
            warm_up(self._making)
