"""Plan a run: model folder + machine + budget -> `Plan`. Opens headers only and touches no device."""

from dataclasses import dataclass
from pathlib import Path

from hybrid.config import RunSettings
from hybrid.graph.attention import Attention, find_attentions
from hybrid.graph.find import Linear, find_linears
from hybrid.model.decoder import Decoder
from hybrid.model.open import open_model
from hybrid.runtime.cache_shape import cache_bytes, cache_types, with_cache_type
from hybrid.runtime.quantisation import activations_asked, host_format_of, quantisation_notes
from hybrid.runtime.target import Target, choose_target, look_in_profile, look_through_driver
from offload.advice import with_advice
from offload.cost_model import StepShape
from offload.placing import PlanRequest
from offload.plan import Plan
from offload.planner import make_plan as fill_budget
from offload.quantised import Activations
from offload.specs import WeightFormat
from offload.units import format_bytes


@dataclass(frozen=True)
class OpenedModel:
    """A decoder, its static matmuls and attentions, and the context of this run in tokens."""

    decoder: Decoder
    linears: tuple[Linear, ...]
    context_tokens: int
    attentions: tuple[Attention, ...] = ()  # those that can run outside onnxruntime
    attends_outside: bool = False  # they have to: onnxruntime cannot read the cache
    host_format: WeightFormat | None = None  # what host columns of float weights are quantised to on load
    activations: Activations | None = None  # as asked; None goes by the model


def open_for_run(settings: RunSettings) -> OpenedModel:
    """Open the model of `settings` and find its Linears and attentions.

    Raises UsageError for a type of the cache that this model cannot have.
    """
    host_format, activations = host_format_of(settings.host_dtype), activations_asked(settings.activations)
    decoder, context_tokens = open_model(Path(settings.model), settings.context_tokens)
    shared = decoder.cache if decoder.shared_cache else ()
    attentions = find_attentions(decoder.graph, shared, context_tokens)
    attends_outside = settings.kv_dtype is not None and cache_types(decoder) != {settings.kv_dtype}
    if settings.kv_dtype is not None and attends_outside:
        ours = {name for attention in attentions for name in (attention.past_key, attention.past_value)}
        decoder = with_cache_type(decoder, settings.kv_dtype, ours)
    return OpenedModel(
        decoder,
        find_linears(decoder.graph),
        context_tokens,
        attentions,
        attends_outside,
        host_format,
        activations,
    )


def make_plan(settings: RunSettings) -> Plan:
    """What would go where, and what would help.

    A machine profile stands for the GPU when one is named, else the driver is asked.
    """
    opened = open_for_run(settings)
    look = look_through_driver if settings.machine is None else look_in_profile
    request = plan_request(opened, choose_target(settings, look), {})
    return with_advice(request, fill_budget(request))


def plan_request(opened: OpenedModel, target: Target, unsupported: dict[str, str]) -> PlanRequest:
    """Everything the planner has to know of this model on this target."""
    decoder = opened.decoder
    per_token = cache_bytes(decoder.graph, decoder.cache, 1)
    specs = tuple(linear.spec for linear in opened.linears)
    layers = max(1, len(decoder.cache) // 2)
    notes = [*target.notes, *decoder.notes, *quantisation_notes(specs, opened.host_format)]
    if not decoder.shared_cache:
        whole = opened.context_tokens * per_token
        notes.append(
            "this graph appends to its cache by Concat: a step copies the whole cache, "
            f"{format_bytes(whole)} with a full context of {opened.context_tokens} tokens"
        )
    return PlanRequest(
        model=decoder.name,
        linears=specs,
        profile=target.profile,
        budget_bytes=target.budget.nbytes,
        fixed_vram_bytes=target.fixed_bytes or {"context": 0, "workspace": 0},
        other_ram_bytes={
            "other weights": _other_weight_bytes(opened),
            "kv cache": opened.context_tokens * per_token,
        },
        step=StepShape(islands=4 * layers + 1, cache_bytes_per_token=per_token, concat_cache=not decoder.shared_cache),
        unsupported=unsupported,
        notes=tuple(notes),
        warnings=(*target.warnings, *((target.budget.note,) if target.budget.note else ())),
        host_format=opened.host_format,
    )


def _other_weight_bytes(opened: OpenedModel) -> int:
    """Embeddings, norms and tables: every initializer that is not a Linear's weight."""
    linear_weights = {linear.weight for linear in opened.linears}
    for linear in opened.linears:
        if linear.blocks is not None:
            linear_weights |= {linear.blocks.scales, linear.blocks.zero_points}
    return sum(i.nbytes for name, i in opened.decoder.graph.initializers.items() if name not in linear_weights)
