"""Writes status lines and tables, which people read beside the text."""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from math import floor, log10
from typing import TYPE_CHECKING, Any

from hybrid.show.disk_text import disk_text, without_disk
from hybrid.show.gpu_text import gpu_json, vram_text
from offload.observe.op_times import OpTime, OpTimes
from offload.plan.plan import HostTier, Plan
from offload.printable import printable
from offload.spec.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine
    from hybrid.machine.memory import MemoryUse
    from hybrid.show.truth import Truth
    from hybrid.text.generate import Generation, GenerationStats

Columns = tuple[int, int, int]  # how many are resident, streamed and on the host
LayerRow = tuple[str, dict[str, Columns]]  # label, and the columns of each kind of Linear

PLACES = ("VRAM", "streamed", "host")
SAME_SHARE = 0.2  # shares that differ by less are one decision, rounded to whole tiles in each layer
WAITS = {  # the parts of a prediction, for people
    "islands": "other operators",
    "attention": "attention",
    "host": "host columns",
    "gpu": "GPU",
    "bus": "bus",
    "round trips": "round trips",
    "ram": "RAM",
    "disk": "disk",
}
STOPPED = {
    "end": "end of text",
    "max_tokens": "stopped at --max-tokens",
    "context": "stopped, context full",
    "stop_word": "stopped at --stop",
    "interrupted": "interrupted",
}


def rate(tokens_per_s: float | None) -> str:
    """Tokens a second for people; "-" when not measured."""
    if tokens_per_s is None:
        return "-"
    digits = 0 if tokens_per_s >= 1000 else 1 if tokens_per_s >= 10 else 2
    if 0 < tokens_per_s < 0.095:
        digits = 1 - floor(log10(tokens_per_s))  # two that count
    return f"{tokens_per_s:,.{digits}f} tokens/s"


def budget_text(plan: Plan, asked: str | None, why: str) -> str:
    """Say what the plan takes of its VRAM budget, who chose that budget, and what for."""
    if plan.budget_bytes == 0:
        return f"CPU only ({why})"
    chosen = "budget chosen automatically" if asked in (None, "auto") else f"--cuda {asked}"
    return f"VRAM {format_bytes(plan.total_vram_bytes)} of {format_bytes(plan.budget_bytes)} ({chosen}; {why})"


def opening_lines(engine: "Engine", asked: str | None) -> str:
    """Say what is about to run: model, budget, context, expected speed; before it, what slows it most."""
    plan = engine.plan
    weights = sum(placement.linear.weight_bytes for placement in plan.placements)
    parts = [
        engine.decoder.name,
        f"{engine.decoder.architecture}, Linears {format_bytes(weights)}",
        budget_text(plan, asked, engine.target),
        f"context {engine.context_tokens}",
        f"predicted {rate(plan.predicted.decode_tokens_per_s)}",
    ]
    return "\n".join(line for line in (disk_text(plan), " · ".join(parts)) if line)


def model_text(engine: "Engine") -> str:
    """Say what a loaded model is, how large, and where it runs."""
    plan = engine.plan
    weights = sum(placement.linear.weight_bytes for placement in plan.placements)
    where = "CPU only"
    if plan.budget_bytes:
        where = f"VRAM {format_bytes(plan.total_vram_bytes)} of {format_bytes(plan.budget_bytes)}"
    parts = [
        engine.decoder.name,
        f"{engine.decoder.architecture}, Linears {format_bytes(weights)}",
        f"{where} ({engine.target})",
        f"context {engine.context_tokens}",
    ]
    return " · ".join(parts)


def closing_line(stats: "GenerationStats", memory: "MemoryUse", truth: "Truth | None", why_slow: str = "") -> str:
    """Say what the run took, and why it was slower than predicted where that is known."""
    decode = f"decode {_work(stats.generated_tokens, stats.decode_tokens_per_s)}"
    if truth is not None:
        decode += f" (predicted {rate(truth.predicted.decode_tokens_per_s).removesuffix(' tokens/s')})"
    parts = [f"prefill {_work(stats.prompt_tokens, stats.prefill_tokens_per_s)}", decode]
    if memory.get("vram_budget_bytes"):
        parts.append(vram_text(memory))
    if ram := memory.get("ram_peak_bytes"):
        cap = memory.get("ram_cap_bytes")
        parts.append(f"RAM peak {format_bytes(ram)}" + (f" of {format_bytes(cap)}" if cap else ""))
    if stats.stop_reason is not None:
        parts.append(STOPPED[stats.stop_reason])
    if why_slow:
        parts.append(why_slow)
    return " · ".join(parts)


def _work(tokens: int, tokens_per_s: float | None) -> str:
    """Tokens and their rate, where it was measured: "1 token", "5 tokens, 12.3 tokens/s"."""
    return counted(tokens, "token") + ("" if tokens_per_s is None else f", {rate(tokens_per_s)}")


def stats_json(
    generation: "Generation", engine: "Engine", memory: "MemoryUse", truth: "Truth | None", times: OpTimes | None
) -> dict[str, Any]:
    """Give what the run took, for programs. What was not measured is null.

    `decode_depth` is how many tokens the cache held in a decode step, a mean, and `predicted_depth` how many the
    prediction is for; `measured_over_predicted` is of the median step, where enough of them ran on no simulated device.
    `memory` is a `MemoryUse`. `gpu` is what the driver told of a GPU since the model was loaded: null, or metrics that
    are null or have their `last` sample, `mean`, `peak` and number of `samples` (`busy` and `memory_busy` from 0 to 1,
    `received_bytes_per_s` and `sent_bytes_per_s` over the bus), and why some are `not_told`.
    `op_times`, with --op-times, is an `OpTimes`: its `host` rows add up to the step, its `inside` rows are part of
    their islands, its `device` rows ran beside them.
    """
    stats, plan = generation.stats, engine.plan
    return {
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "stop_reason": stats.stop_reason,
        "seed": generation.seed,
        "prefill_s": stats.prefill_s,
        "prefill_tokens_per_s": stats.prefill_tokens_per_s,
        "time_to_first_token_s": stats.time_to_first_token_s,
        "decode_s": stats.decode_s,
        "decode_tokens_per_s": stats.decode_tokens_per_s,
        "decode_step_median_s": stats.decode_step_median_s,
        "decode_depth": stats.mean_depth,
        "predicted_decode_step_s": plan.predicted.decode_step_s,
        "predicted_depth": plan.predicted.depth,
        "measured_over_predicted": None if truth is None else truth.measured_over_predicted,
        "memory": dict(memory),
        "gpu": gpu_json(engine.monitor),
        "plan": plan_totals(plan),
        "op_times": None if times is None else asdict(times),
        "warnings": list(plan.warnings),
    }


def plan_totals(plan: Plan) -> dict[str, int]:
    """Bytes of a plan: its budget, what it takes of VRAM and RAM, and where the Linears' weights are."""
    resident = streamed = host = 0.0
    for placement in plan.placements:
        column_bytes = placement.linear.column_bytes
        resident += len(placement.resident) * column_bytes
        streamed += len(placement.streamed) * column_bytes
        host += len(placement.host) * column_bytes
    return {
        "budget_bytes": plan.budget_bytes,
        "vram_bytes": plan.total_vram_bytes,
        "ram_bytes": sum(plan.ram_bytes.values()),
        "resident_bytes": round(resident),
        "streamed_bytes": round(streamed),
        "host_bytes": round(host),
    }


def layer_rows(plan: Plan) -> list[LayerRow]:
    """The placement layer by layer; neighbours that are placed alike become one row, "0-21"."""
    layers: dict[str, dict[str, Columns]] = {}
    for placement in plan.placements:
        here = len(placement.resident), len(placement.streamed), len(placement.host)
        kinds = layers.setdefault(placement.linear.layer, {})
        kinds[placement.linear.kind] = _add(kinds.get(placement.linear.kind, (0, 0, 0)), here)
    runs: list[list[str]] = []
    for layer, kinds in layers.items():
        if runs and _alike(layers[runs[-1][0]], kinds):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [_join_layers(run, layers) for run in runs]


def cell_text(columns: Columns) -> str:
    """List the places of the columns, one a line: "62% VRAM", "38% host"; just "host" when all are there."""
    total = sum(columns)
    lines = []
    for place, count in zip(PLACES, columns, strict=True):
        if count == total:
            return place
        if count:
            lines.append(f"{min(max(count / total, 0.01), 0.99):.0%} {place}")
    return "\n".join(lines)


def plan_text(plan: Plan, asked: str | None, width: int, each_linear: bool = False) -> str:
    """The plan for people: placement by layer or Linear, memory by name, the predicted step, notes."""
    disk = disk_text(plan)
    lines = [
        *([disk] if disk else []),
        f"{plan.model} · {budget_text(plan, asked, plan.machine['name'])}",
        _linear_table(plan, width) if each_linear else _layer_table(layer_rows(plan), width),
        _memory_table(plan, width),
        _prediction_table(plan, width),
        *(
            f"{advice.change} would give {rate(advice.decode_tokens_per_s)}, {advice.speedup:.2f} times as many"
            for advice in plan.advice
        ),
        *(f"note: {note}" for note in without_disk(plan, plan.notes)),
    ]
    return printable("\n".join(lines)) + "\n"


def op_times_text(times: OpTimes | None, width: int) -> str:
    """Tabulate where the decode steps went, for people."""
    if times is None:
        return "no decode step was recorded\n"
    lines = [
        f"where {counted(times.steps, 'decode step')} of {format_seconds(times.mean_step_s)} went",
        _op_table("on the host", times.host, width),
    ]
    if times.inside:
        lines.append(_op_table("inside islands, as onnxruntime profiles them", times.inside, width))
    if times.device:
        where = "modelled, beside it on the simulated device" if times.modelled else "beside it, on the device"
        lines.append(_op_table(where, times.device, width))
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], width: int, right: Collection[str] = ()) -> str:
    """A table as text; the columns named in `right` are aligned there."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=width, file=io.StringIO(), color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


def _layer_table(rows: list[LayerRow], width: int) -> str:
    columns: dict[tuple[str, ...], list[str]] = {}  # kinds that are placed alike share a column
    for kind in dict.fromkeys(kind for _, cells in rows for kind in cells):
        texts = tuple(cell_text(cells[kind]) if kind in cells else "" for _, cells in rows)
        columns.setdefault(texts, []).append(kind)
    labels = [label or "-" for label, _ in rows]
    header = ["layer", *[", ".join(kinds) for kinds in columns.values()]]
    return _table(header, zip(labels, *columns, strict=True), width)


def _linear_table(plan: Plan, width: int) -> str:
    rows = []
    for placement in plan.placements:
        linear = placement.linear
        columns = len(placement.resident), len(placement.streamed), len(placement.host)
        place = cell_text(columns).replace("\n", ", ")
        place += " (on disk)" if placement.tier is HostTier.FILE else ""
        nbytes = format_bytes(linear.weight_bytes)
        kept = str(linear.format)
        if len(placement.host) and placement.host_format is not linear.format:
            kept += f", host {placement.host_format}"
        rows.append((linear.layer or "-", linear.kind, kept, nbytes, place, placement.reason))
    return _table(("layer", "Linear", "format", "size", "place", "why"), rows, width, right=("size",))


def _prediction_table(plan: Plan, width: int) -> str:
    """The predicted step at several depths and what the host waits for; a prefill chunk in the last row."""
    rows = [
        (
            f"decode after {counted(step.depth, 'token')}",
            format_seconds(step.decode_step_s),
            rate(step.decode_tokens_per_s),
            _parts_text(step.parts_s),
        )
        for step in plan.at_depths
    ]
    prefill = plan.prefill
    rows.append(
        (
            f"prefill of {counted(prefill.tokens, 'token')}",
            format_seconds(prefill.step_s),
            rate(prefill.tokens_per_s),
            f"mostly {WAITS[prefill.bound_by]}",
        )
    )
    return _table(("predicted", "step", "rate", "the host waits for"), rows, width, right=("step", "rate"))


def _parts_text(parts_s: dict[str, float]) -> str:
    """The parts of a step from the largest on, those under 3% left out."""
    total = sum(parts_s.values())
    parts = sorted(parts_s.items(), key=lambda part: -part[1])
    return ", ".join(f"{WAITS[name]} {seconds / total:.0%}" for name, seconds in parts if seconds >= 0.03 * total)


def _memory_table(plan: Plan, width: int) -> str:
    vram = {**plan.vram_bytes, "total": plan.total_vram_bytes, "budget": plan.budget_bytes}
    ram_cap = plan.ram_budget_bytes or 0 if plan.ram_is_asked else 0
    ram = {**plan.ram_bytes, "total": plan.total_ram_bytes, "budget": ram_cap}
    names = [name for name in dict.fromkeys([*plan.vram_bytes, *plan.ram_bytes]) if vram.get(name) or ram.get(name)]
    rows = [
        (name, *(format_bytes(where[name]) if where.get(name) else "" for where in (vram, ram)))
        for name in (*names, "total", *(["budget"] if plan.budget_bytes or ram_cap else []))
    ]
    return _table(("memory", "VRAM", "RAM"), rows, width, right=("VRAM", "RAM"))


def _op_table(where: str, times: Iterable[OpTime], width: int) -> str:
    header = (where, "what", "a step", "ms", "share")
    rows = [(t.operator, t.what, f"{t.count:.4g}", f"{t.mean_s * 1e3:.3f}", f"{t.share:.1%}") for t in times]
    return _table(header, rows, width, right=header[2:])


def _add(one: Columns, other: Columns) -> Columns:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _alike(one: dict[str, Columns], other: dict[str, Columns]) -> bool:
    """Tell whether two layers have the same kinds of Linears in about the same places."""
    if one.keys() != other.keys():
        return False
    return all(
        abs(a / sum(one[kind]) - b / sum(other[kind])) < SAME_SHARE
        for kind in one
        for a, b in zip(one[kind], other[kind], strict=True)
    )


def _join_layers(run: list[str], layers: dict[str, dict[str, Columns]]) -> LayerRow:
    total = layers[run[0]]
    for layer in run[1:]:
        total = {kind: _add(columns, layers[layer][kind]) for kind, columns in total.items()}
    return (run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"), total
