"""Plan a run: model folder + machine + budget -> `Plan`. Opens headers only and touches no device."""

from dataclasses import replace

from hybrid.graph.cache_shape import cache_bytes
from hybrid.graph.graph import body_initializers
from hybrid.loading.opened_model import OpenedModel, open_for_run
from hybrid.loading.quantisation import quantisation_notes, without_effect
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import Target, choose_target, look_in_profile, look_through_driver
from hybrid.machine.cgroups import read_limits
from hybrid.machine.ram import Ram, RamBudget, read_ram, resolve_ram
from hybrid.machine.threads import threads_warning
from offload.errors import RamBudgetError
from offload.machine.profile import DeviceProfile
from offload.plan.advice import with_advice
from offload.plan.plan import Plan
from offload.plan.planner import make_plan as fill_budget
from offload.plan.request import CHUNK_TOKENS, DEFAULT_DEPTH, DEPTHS, PlanRequest
from offload.spec.units import MIB, counted, format_bytes

# Python, numpy, onnxruntime, numba with its compiler, tokenizers: measured after the first reply of all, which compiles
# the kernels (60 MiB).
_PROCESS_BYTES = 272 * MIB
_USUAL_HEADS = 32  # where a graph does not name them
_FAULT_BYTES = 64 << 10  # what Linux maps around a page that is touched


def make_plan(settings: RunSettings) -> Plan:
    """Plan what would go where, and what would help.

    A machine profile stands for the GPU when one is named, else the driver is asked.
    """
    opened = open_for_run(settings)
    look = look_through_driver if settings.machine is None else look_in_profile
    target = choose_target(settings, look)
    target = replace(target, warnings=(*target.warnings, *_threads_warning(settings, target.profile)))
    ram = ram_of(target.profile) if settings.machine is not None else read_ram(read_limits())
    request = plan_request(opened, target, {}, resolve_ram(settings.ram_budget, ram))
    plan = plan_within(request)
    return with_advice(request, plan)


def _threads_warning(settings: RunSettings, profile: DeviceProfile) -> tuple[str, ...]:
    """A line where the plan is for another number of threads than is asked for."""
    if settings.machine is None:
        return threads_warning(settings.threads)
    if settings.threads in (None, profile.cpu.threads):
        return ()
    return (f"--threads {settings.threads}: no effect, the rates of {profile.name} are for {profile.cpu.threads}",)


def plan_within(request: PlanRequest) -> Plan:
    """The plan within the budgets of VRAM and RAM.

    Raises RamBudgetError when a RAM cap that was asked for is too small; one that was not is raised, with a warning.
    """
    try:
        return fill_budget(request)
    except RamBudgetError as error:
        if request.ram_is_asked:
            raise
        warning = (
            f"{format_bytes(error.least_bytes)} of RAM are needed, and {format_bytes(request.ram_budget_bytes or 0)} "
            "should be taken: the machine may become slow, or end this program"
        )
        return fill_budget(replace(request, ram_budget_bytes=error.least_bytes, warnings=(*request.warnings, warning)))


def ram_of(profile: DeviceProfile) -> Ram:
    """The RAM of the machine that a profile describes."""
    return Ram(profile.cpu.ram_bytes, profile.cpu.ram_bytes)


def plan_request(
    opened: OpenedModel, target: Target, unsupported: dict[str, str], ram: RamBudget | None = None
) -> PlanRequest:
    """Everything the planner has to know of this model on this target. Without `ram` there is no cap."""
    decoder = opened.decoder
    per_token = cache_bytes(decoder.graph, decoder.cache, 1)
    specs = tuple(linear.spec for linear in opened.linears)
    depths = _depths(decoder.context_limit)
    notes = [*target.notes, *quantisation_notes(specs, opened.host_format)]
    budget_notes = (note for note in (target.budget.note, ram.note if ram else "") if note)
    if not decoder.shared_cache:
        whole = opened.context_tokens * per_token
        notes.append(
            "this graph appends to its cache by Concat: a step copies the whole cache, "
            f"{format_bytes(whole)} with a full context of {counted(opened.context_tokens, 'token')}"
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
            "activations": _activation_bytes(opened),
            "interpreter and libraries": _PROCESS_BYTES,
        },
        step=opened.step,
        unsupported=unsupported,
        notes=tuple(notes),
        warnings=(
            *decoder.notes,
            *target.warnings,
            *budget_notes,
            *without_effect(specs, opened.host_format, opened.activations),
        ),
        ram_budget_bytes=ram.nbytes if ram else None,
        ram_is_asked=ram is not None and ram.asked,
        most_vram_bytes=target.budget.most_bytes,
        most_ram_bytes=ram.most_bytes if ram else 0,
        host_format=opened.host_format,
        depth=depths[1],
        depths=depths,
    )


def _depths(context_limit: int) -> tuple[int, ...]:
    """Tokens in the cache of the steps that a plan tells: none, 1024, 4096; half of what a small model can hold."""
    usual = min(DEFAULT_DEPTH, context_limit // 2) if context_limit else DEFAULT_DEPTH
    return (0, usual, *(depth for depth in DEPTHS if usual < depth and (not context_limit or depth < context_limit)))


def _activation_bytes(opened: OpenedModel) -> int:
    """Estimate what onnxruntime and the buffers between islands take in a step of CHUNK_TOKENS: a generous estimate.

    Inputs and outputs of the widest group, which mostly is the logits' (once), and of the next (twice); and where
    attention is not GroupQueryAttention, fp32 scores for every head, query and key, twice.
    """
    groups: dict[str, int] = {}
    for linear in opened.linears:
        groups[linear.spec.group] = groups.get(linear.spec.group, linear.spec.in_features) + linear.spec.out_features
    widest = sorted(groups.values())[-2:]
    widths = 2 * sum(widest[:-1]) + sum(widest[-1:])
    graph = opened.decoder.graph
    if not any(node.op_type == "GroupQueryAttention" for node in graph.nodes):
        heads = max((int(node.attributes.get("num_heads", 0)) for node in graph.nodes), default=0) or _USUAL_HEADS
        widths += 2 * heads * opened.context_tokens
    return 4 * CHUNK_TOKENS * widths


def _other_weight_bytes(opened: OpenedModel) -> int:
    """Embeddings, norms and tables: every initializer that is not a Linear's weight.

    Of tables that rows are looked up in, a step touches a few pages for each token, and gives them up afterwards.
    That is where they are mapped by us, in an island without a matmul: where all Linears run outside onnxruntime.
    """
    graph = opened.decoder.graph
    linear_weights = {name for linear in opened.linears for name in linear.weights}
    all_outside = len(opened.outside) == len(opened.linears)
    total = sum(initializer.nbytes for initializer in body_initializers(graph.nodes))
    for switch in opened.decoder.switches:
        total += sum(initializer.nbytes for initializer in (*switch.before.values(), *switch.after.values()))
    for name, initializer in graph.initializers.items():
        readers = graph.consumers.get(name, [])
        if all_outside and any(node.op_type == "Gather" and node.inputs[0] == name for node in readers):
            row_bytes = initializer.nbytes // initializer.shape[0] if initializer.shape else 0
            total += min(initializer.nbytes, CHUNK_TOKENS * (row_bytes + _FAULT_BYTES))
        elif name not in linear_weights:
            total += initializer.nbytes
    return total
