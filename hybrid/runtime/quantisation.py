"""Host columns in blocks of int8 and int4: those a model comes with, and those made of float weights on load."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hybrid.errors import UsageError
from hybrid.graph.find import Linear
from hybrid.graph.graph import ElementType, Graph
from offload.devices.base import HostArray
from offload.host_memory import quantised_into_ram
from offload.plan import HostTier, LinearPlacement
from offload.quantised import Activations, QuantisedWeight
from offload.specs import REQUANTISED_BLOCK, LinearSpec, WeightFormat

if TYPE_CHECKING:
    from offload.host_backend import NumbaBackend
    from offload.host_quantised import QuantisedKind

_ROUNDING_LEVEL = 4  # the accuracy_level of MatMulNBits at which activations are rounded to int8


def host_format_of(text: str | None) -> WeightFormat | None:
    """What `--host-dtype` asks for. Raises UsageError."""
    if text is None or text in (WeightFormat.INT8, WeightFormat.INT4):
        return None if text is None else WeightFormat(text)
    raise UsageError(f"--host-dtype {text}: must be int8 or int4")


def activations_asked(text: str | None) -> Activations | None:
    """What `--activations` asks for. Raises UsageError."""
    if text is None or text in list(Activations):
        return None if text is None else Activations(text)
    raise UsageError(f"--activations {text}: must be int8 or float")


def quantisation_notes(linears: Sequence[LinearSpec], host_format: WeightFormat | None) -> list[str]:
    """What the plan has to say of weights that are quantised on load."""
    if host_format is None:
        return []
    chosen = [linear for linear in linears if linear.format.is_float and not linear.host_only_reason]
    if not chosen:
        return [f"no Linear of this model has float weights that could be quantised to {host_format}"]
    return [
        f"host columns of {len(chosen)} Linears, {chosen[-1].kind} among them, are quantised to {host_format} on load, "
        f"as asked: blocks of {REQUANTISED_BLOCK}, an fp16 scale each"
    ]


class HostQuantisation:
    """The Linears outside onnxruntime whose host columns are in blocks; `activations` says what each multiplies."""

    def __init__(
        self,
        graph: Graph,
        outside: Iterable[Linear],
        placements: Iterable[LinearPlacement],
        asked: Activations | None,
    ) -> None:
        """`asked` goes before what the model says."""
        linears = {linear.spec.name: linear for linear in outside}
        on_host = [placement for placement in placements if len(placement.host) and not placement.host_format.is_float]
        self._graph = graph
        stored = [p for p in on_host if linears[p.linear.name].blocks is not None]
        self._stored = [linears[placement.linear.name] for placement in stored]
        self._in_files = {placement.linear.name for placement in stored if placement.tier is HostTier.FILE}
        self._made = [placement for placement in on_host if placement.linear.format.is_float]
        self.activations: Mapping[str, Activations] = {
            placement.linear.name: asked or _activations(linears[placement.linear.name]) for placement in on_host
        }

    def warm_up(self, backend: "NumbaBackend") -> None:
        """Compile everything that loading and multiplying needs."""
        from offload.host_quantised import QuantisedKind
        from offload.requantise import warm_up

        kinds: set[QuantisedKind] = {self._kind_of(linear) for linear in self._stored}
        for placement in self._made:
            bits = 8 if placement.host_format is WeightFormat.INT8 else 4
            activations = self.activations[placement.linear.name]
            kinds.add(QuantisedKind(bits, REQUANTISED_BLOCK, WeightFormat.FP16, activations))
        backend.warm_up_quantised(kinds)
        if self._made:
            warm_up({(p.linear.format, p.linear.layout, p.host_format) for p in self._made})

    def weights(
        self, floats: Mapping[str, HostArray], in_ram: bool, on_bytes: Callable[[int], None]
    ) -> dict[str, QuantisedWeight]:
        """All of them by Linear: stored ones in RAM or in their mapped files, others made of `floats`.

        Raises OffloadError for a file that has become shorter or cannot be read.
        """
        found = {linear.spec.name: stored_weight(self._graph, linear) for linear in self._stored}
        if in_ram:
            kept = {name: weight for name, weight in found.items() if name not in self._in_files}
            found |= quantised_into_ram(kept, on_bytes)
        if self._made:
            from offload.requantise import requantise_into_ram

            found |= requantise_into_ram(self._made, floats, on_bytes)
        return found

    def _kind_of(self, linear: Linear) -> "QuantisedKind":
        from offload.host_quantised import QuantisedKind

        assert linear.blocks is not None
        is_half = self._graph.initializers[linear.blocks.scales].element_type is ElementType.FLOAT16
        bits = 8 if linear.spec.format is WeightFormat.INT8 else 4
        scales = WeightFormat.FP16 if is_half else WeightFormat.FP32
        return QuantisedKind(bits, linear.blocks.block, scales, self.activations[linear.spec.name])


def stored_weight(graph: Graph, linear: Linear) -> QuantisedWeight:
    """The weight of a MatMulNBits where it lies."""
    stored = linear.blocks
    assert stored is not None
    n, blocks = linear.spec.out_features, -(-linear.spec.in_features // stored.block)
    arrays = {
        name: graph.initializers[name].array() for name in (linear.weight, stored.scales, stored.zero_points) if name
    }
    zeros = arrays[stored.zero_points].reshape(n, -1) if stored.zero_points else None
    return QuantisedWeight(
        arrays[linear.weight].reshape(n, blocks, -1),
        arrays[stored.scales].reshape(n, blocks),
        zeros,
        linear.spec.format,
        linear.spec.in_features,
    )


def _activations(linear: Linear) -> Activations:
    is_exact = linear.blocks is not None and linear.blocks.accuracy_level != _ROUNDING_LEVEL
    return Activations.FLOAT if is_exact else Activations.INT8
