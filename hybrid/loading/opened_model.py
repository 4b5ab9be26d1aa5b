"""A model opened for a run: its graph, Linears and attentions, and where they are cut out of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hybrid.graph.attention import Attention, find_attentions
from hybrid.graph.cache_shape import cache_types, with_cache_type
from hybrid.graph.cut import cut
from hybrid.graph.decoder import Decoder
from hybrid.graph.find import Linear, find_linears
from hybrid.graph.layers import with_layers
from hybrid.graph.program import Program
from hybrid.graph.stages import stages
from hybrid.loading.open_model import open_model
from hybrid.loading.quantisation import activations_asked, host_format_of
from hybrid.loading.settings import RunSettings
from offload.spec.linear import Activations, WeightFormat
from offload.spec.step import StepShape


@dataclass(frozen=True)
class OpenedModel:
    """A decoder, its static matmuls and attentions, and the context of this run in tokens."""

    decoder: Decoder
    linears: tuple[Linear, ...]
    context_tokens: int
    attentions: tuple[Attention, ...]  # those that run outside onnxruntime: all that can
    program: Program  # the graph, cut where Linears and attentions run outside onnxruntime
    host_format: WeightFormat | None = None  # what host columns of float weights are quantised to on load
    activations: Activations | None = None  # as asked; None goes by the model

    @property
    def outside(self) -> tuple[Linear, ...]:
        """The Linears that run outside onnxruntime: all that our kernels can multiply, whatever the plan."""
        return _outside(self.linears)

    @cached_property
    def step(self) -> StepShape:
        """The work of a step besides its Linears, as the planner gets it."""
        return StepShape(stages(self.program, self.decoder.cache), concat_cache=not self.decoder.shared_cache)


def open_for_run(settings: RunSettings) -> OpenedModel:
    """Open the model of `settings` and find its Linears and attentions.

    Raises UsageError for a type of the cache that this model cannot have.
    """
    host_format, activations = host_format_of(settings.host_dtype), activations_asked(settings.activations)
    decoder, context_tokens = open_model(Path(settings.model), settings.context_tokens, settings.allow_unused)
    attentions = _attentions(decoder, context_tokens)
    if settings.kv_dtype is not None and cache_types(decoder) != {settings.kv_dtype}:
        ours = {name for attention in attentions for name in (attention.past_key, attention.past_value)}
        decoder = with_cache_type(decoder, settings.kv_dtype, ours)
    linears = _with_activations(find_linears(decoder.graph), activations)
    return opened_model(decoder, linears, context_tokens, attentions, host_format, activations)


def opened_model(
    decoder: Decoder,
    linears: Sequence[Linear],
    context_tokens: int,
    attentions: tuple[Attention, ...],
    host_format: WeightFormat | None = None,
    activations: Activations | None = None,
) -> OpenedModel:
    """Cut the graph at these Linears and attentions, and say which layer each Linear belongs to."""
    program = cut(decoder.graph, _outside(linears), attentions)
    named = with_layers(linears, program, decoder.cache)
    return OpenedModel(decoder, named, context_tokens, attentions, program, host_format, activations)


def _outside(linears: Sequence[Linear]) -> tuple[Linear, ...]:
    return tuple(linear for linear in linears if not linear.spec.host_only_reason)


def _attentions(decoder: Decoder, context_tokens: int) -> tuple[Attention, ...]:
    return find_attentions(decoder.graph, decoder.cache if decoder.shared_cache else (), context_tokens)


def _with_activations(linears: Sequence[Linear], asked: Activations | None) -> tuple[Linear, ...]:
    """Set the activations that were asked for, which go before what the model says."""
    if asked is None:
        return tuple(linears)
    return tuple(replace(linear, spec=replace(linear.spec, activations=asked)) for linear in linears)
