"""A model: what it is, which of its weights can leave the CPU, and whether it fits this machine."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hybrid.doctor.report import Finding, note, ok, problem
from hybrid.errors import OffloadError
from hybrid.loading.opened_model import OpenedModel, open_for_run
from hybrid.loading.planning import plan_request
from hybrid.loading.resolve import cached_model
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import GpuFacts, Target, choose_target
from hybrid.machine.profiles import find_profile
from hybrid.machine.ram import Ram
from hybrid.source.folder import hub_name, is_there
from offload.devices.cuda.nvml import Driver
from offload.machine.budget import ResolvedBudget
from offload.machine.profile import DeviceProfile
from offload.plan.placing import place
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.plan.shares import Shares
from offload.spec.linear import LinearSpec
from offload.spec.units import counted, format_bytes

_WITHOUT_LIMIT_BYTES = 1 << 50


def examine_model(
    model: Path, ram: Ram | None, driver: Driver | None, device_refuses: Mapping[str, str]
) -> list[Finding]:
    """Findings about a model, a folder or a name on the hub of what is downloaded already.

    `device_refuses` names weight formats that the GPU cannot multiply.
    """
    try:
        path = cached_model(model)
        settings = RunSettings(model=path, cuda="0")
        opened = open_for_run(settings)
        on_cpu = make_plan(plan_request(opened, choose_target(settings, _no_gpu), {}))
        on_gpu = place(plan_request(opened, _unlimited_gpu(), dict(device_refuses)), lambda _: Shares(1.0))
    except OffloadError as error:
        return [problem(str(error), _download(model))]
    specs = [linear.spec for linear in opened.linears]
    findings = [_identity(opened), *_formats(specs), *_stays_on_cpu(specs, device_refuses), _context(opened, on_cpu)]
    findings += [note(text) for text in opened.decoder.notes]
    if not opened.decoder.graph.has_weights:
        findings.append(note("only a config, no weights: it can be planned, not run", _download(model)))
    else:
        findings.append(_tokenizer(path))
    findings.append(_ram(sum(on_cpu.ram_bytes.values()), ram, any(spec.is_quantisable for spec in specs)))
    return findings + _vram(on_gpu, driver, model)


def _download(model: Path) -> str:
    """For the name of a model on the hub, which is no folder here: the command that downloads all of it."""
    is_name = hub_name(str(model)) is not None and not is_there(model.expanduser())
    return f'hybrid run --model {shlex.quote(str(model))} "Hello"' if is_name else ""


def _identity(opened: OpenedModel) -> Finding:
    decoder = opened.decoder
    layers = counted(len(decoder.cache) // 2, "layer")
    return ok(f"{decoder.name}: {decoder.architecture}, {layers}, a vocabulary of {decoder.vocab_size}")


def _formats(specs: Sequence[LinearSpec]) -> list[Finding]:
    by_format = defaultdict(list)
    for spec in specs:
        by_format[str(spec.format)].append(spec)
    if not by_format:
        return [note("no Linears: nothing of this model can be offloaded")]
    return [ok(f"{name}: {_amount(group)}") for name, group in by_format.items()]


def _stays_on_cpu(specs: Sequence[LinearSpec], device_refuses: Mapping[str, str]) -> list[Finding]:
    by_reason = defaultdict(list)
    for spec in specs:
        if reason := spec.host_only_reason or device_refuses.get(str(spec.format), ""):
            by_reason[reason].append(spec)
    return [note(f"{_amount(group)} cannot be offloaded: {reason}") for reason, group in by_reason.items()]


def _context(opened: OpenedModel, plan: Plan) -> Finding:
    limit = opened.decoder.context_limit
    made_for = "the file does not say how many tokens it was made for"
    if limit:
        made_for = f"made for {counted(limit, 'token')}"
    cache = format_bytes(plan.ram_bytes["kv cache"])
    return ok(f"context: {made_for}; {opened.context_tokens} unless --context says otherwise, a KV cache of {cache}")


def _tokenizer(path: Path) -> Finding:
    from hybrid.text.open_tokenizer import load_tokenizer

    try:
        load_tokenizer(path)
    except OffloadError as error:
        return problem(str(error))
    return ok("its tokenizer loads")


def _ram(need_bytes: int, ram: Ram | None, is_quantisable: bool) -> Finding:
    text = f"with --cuda 0 it takes about {format_bytes(need_bytes)} of RAM"
    if ram is None:
        return note(text)
    if need_bytes > ram.total_bytes:
        have = format_bytes(ram.total_bytes)
        fewer_bits = ", or this one with --host-dtype int8 or int4" if is_quantisable else ""
        return problem(f"{text}, and there are {have}: take a smaller model{fewer_bits}")
    if need_bytes > ram.available_bytes:
        return note(f"{text}, and {format_bytes(ram.available_bytes)} are available: close other programs first")
    return ok(f"{text}: it fits")


def _vram(plan: Plan, driver: Driver | None, model: Path) -> list[Finding]:
    """Tell whether all that can be resident fits the freest GPU."""
    if not any(placement.on_device for placement in plan.placements):
        return []
    text = f"with all that can be offloaded in VRAM it takes about {format_bytes(plan.total_vram_bytes)} of it"
    free = [gpu.free_bytes for gpu in driver.gpus if gpu.free_bytes is not None] if driver is not None else []
    if not free:
        return [ok(text)]
    if plan.total_vram_bytes <= max(free):
        return [ok(f"{text}: it fits")]
    part = f"hybrid plan --model {shlex.quote(str(model))}"
    return [note(f"{text}, and {format_bytes(max(free))} are free: a part of it stays in RAM, see `{part}`")]


def _amount(specs: Iterable[LinearSpec]) -> str:
    sizes = [spec.weight_bytes for spec in specs]
    return f"{counted(len(sizes), 'Linear')}, {format_bytes(sum(sizes))}"


def _no_gpu(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    raise AssertionError("a budget of 0 looks at no GPU")


def _unlimited_gpu() -> Target:
    """A GPU on which everything fits, to see how much that is."""
    profile = find_profile("generic-gpu")
    assert profile.gpu is not None
    fixed = {"context": profile.gpu.context_bytes, "workspace": profile.gpu.workspace_bytes}
    gpu = replace(profile.gpu, vram_bytes=_WITHOUT_LIMIT_BYTES)
    return Target("cuda", 0, replace(profile, gpu=gpu), ResolvedBudget(_WITHOUT_LIMIT_BYTES), fixed, "")
