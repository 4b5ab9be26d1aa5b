"""What people read beside the text: status lines, tables and the progress of loading."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from offload.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task
    from rich.table import Table

    from hybrid.model.decoder import Decoder
    from hybrid.text.generate import Generation, GenerationStats

Columns = tuple[int, int, int]  # how many are resident, streamed and on the host
LayerRow = tuple[str, dict[str, Columns]]  # label, and the columns of each kind of Linear
OnStage = Callable[[str, int], None]
OnBytes = Callable[[int], None]

PLACES = ("VRAM", "streamed", "host")
SAME_SHARE = 0.1  # the planner rounds each layer to whole tiles, so shares that differ by less are one decision
STOPPED = {
    "end": "end of text",
    "max_tokens": "stopped at --max-tokens",
    "context": "stopped, context full",
    "interrupted": "interrupted",
}


def size(nbytes: float) -> str:
    """Bytes for people: "6.00 GiB", "12.5 MiB", "512 B"."""
    for unit, scale, digits in (("GiB", 2**30, 2), ("MiB", 2**20, 1), ("KiB", 2**10, 1)):
        if nbytes >= scale:
            return f"{nbytes / scale:.{digits}f} {unit}"
    return f"{nbytes:.0f} B"


def rate(tokens_per_s: float | None) -> str:
    """Tokens a second for people; "-" when not measured."""
    if tokens_per_s is None:
        return "-"
    digits = 0 if tokens_per_s >= 1000 else 1 if tokens_per_s >= 10 else 2
    return f"{tokens_per_s:,.{digits}f} tokens/s"


def duration(seconds: float) -> str:
    """Seconds for people: "1.20 s", "45.20 ms", "85 µs"."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def budget_text(plan: Plan, asked: str | None) -> str:
    """What the plan takes of its VRAM budget, and who chose that budget."""
    chosen = "chosen automatically" if asked in (None, "auto") else f"--cuda {asked}"
    if plan.budget_bytes == 0:
        return f"no VRAM ({chosen})"
    return f"VRAM {size(plan.total_vram_bytes)} of {size(plan.budget_bytes)} ({chosen})"


def opening_line(decoder: "Decoder", plan: Plan, context_tokens: int, asked: str | None) -> str:
    """What is about to run: model, machine, budget, context and the speed that is expected."""
    weights = sum(placement.linear.weight_bytes for placement in plan.placements)
    machine = [str(plan.machine["name"])] if plan.machine.get("name") else []
    parts = [
        decoder.name,
        decoder.architecture,
        f"Linears {size(weights)}",
        *machine,
        budget_text(plan, asked),
        f"context {context_tokens}",
        f"predicted {rate(plan.predicted.decode_tokens_per_s)}",
    ]
    return " · ".join(parts)


def closing_line(stats: "GenerationStats", memory: dict[str, int]) -> str:
    """What the run took."""
    parts = [
        f"prefill {stats.prompt_tokens} tokens, {rate(stats.prefill_tokens_per_s)}",
        f"decode {stats.generated_tokens} tokens, {rate(stats.decode_tokens_per_s)}",
    ]
    if vram := memory.get("vram_peak_bytes"):
        budget = memory.get("vram_budget_bytes")
        parts.append(f"VRAM peak {size(vram)}" + (f" of {size(budget)}" if budget else ""))
    if ram := memory.get("ram_peak_bytes"):
        parts.append(f"RAM peak {size(ram)}")
    if stats.stop_reason is not None:
        parts.append(STOPPED[stats.stop_reason])
    return " · ".join(parts)


def stats_json(generation: "Generation", plan: Plan, memory: dict[str, int]) -> dict[str, Any]:
    """What the run took, for programs. What was not measured is null."""
    stats = generation.stats
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
        "predicted_decode_step_s": plan.predicted.decode_step_s,
        "memory": dict(memory),
        "plan": plan_totals(plan),
    }


def plan_totals(plan: Plan) -> dict[str, int]:
    """Bytes of a plan: its budget, what it takes of VRAM and RAM, and where the weights of the Linears are."""
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
    """Where the columns are, a place a line: "62% VRAM", "38% host"; a place that has them all is just named."""
    total = sum(columns)
    lines = []
    for place, count in zip(PLACES, columns, strict=True):
        if count == total:
            return place
        if count:
            lines.append(f"{min(max(count / total, 0.01), 0.99):.0%} {place}")
    return "\n".join(lines)


def print_plan(plan: Plan, asked: str | None, file: TextIO) -> None:
    """The whole plan for people: placement by layer, memory by name, the predicted step, notes."""
    console = _console(file)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{plan.model}: {budget_text(plan, asked)}")
    console.print(_placement_table(layer_rows(plan)))
    console.print(_memory_table(plan))
    step = plan.predicted
    line(
        f"predicted decode step {duration(step.decode_step_s)}, {rate(step.decode_tokens_per_s)}, "
        f"with {step.depth} tokens in the cache; bound by {step.bound_by}"
    )
    for note in plan.notes:
        line(f"note: {note}")


@contextmanager
def loading_progress(file: TextIO) -> Iterator[tuple[OnStage, OnBytes]]:
    """The two callbacks of `open_engine`, drawing a bar that is gone afterwards; silent where no terminal is."""
    if not file.isatty():
        yield (lambda label, total_bytes: None), (lambda nbytes: None)
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: "Task") -> Text:
            done = size(task.completed) if task.completed else ""
            total = f" of {size(task.total)}" if task.total else ""
            speed = f", {size(task.speed)}/s" if task.speed else ""
            return Text(done + total + speed)

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), Amount())
    with Progress(*columns, console=_console(file), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("Opening", total=None)

        def on_stage(label: str, total_bytes: int) -> None:
            nonlocal task
            progress.remove_task(task)
            task = progress.add_task(label, total=total_bytes or None)

        yield on_stage, (lambda nbytes: progress.advance(task, nbytes))


def _console(file: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 120)


def _placement_table(rows: list[LayerRow]) -> "Table":
    from rich import box
    from rich.table import Table

    columns: dict[tuple[str, ...], list[str]] = {}  # neighbouring kinds with equal cells share a column
    for kind in dict.fromkeys(kind for _, cells in rows for kind in cells):
        texts = tuple(cell_text(cells[kind]) if kind in cells else "" for _, cells in rows)
        if columns and next(reversed(columns)) == texts:
            columns[texts].append(kind)
        else:
            columns.setdefault(texts, []).append(kind)
    table = Table("layer", *["\n".join(kinds) for kinds in columns.values()], box=box.SIMPLE_HEAD, pad_edge=False)
    for label, *cells in zip([label for label, _ in rows], *columns, strict=True):
        table.add_row(label, *cells)
    return table


def _memory_table(plan: Plan) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table("memory", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("VRAM", justify="right")
    table.add_column("RAM", justify="right")
    for name in dict.fromkeys([*plan.vram_bytes, *plan.ram_bytes]):
        table.add_row(name, *[size(where[name]) if name in where else "" for where in (plan.vram_bytes, plan.ram_bytes)])
    table.add_section()
    table.add_row("total", size(plan.total_vram_bytes), size(sum(plan.ram_bytes.values())))
    table.add_row("budget", size(plan.budget_bytes), "")
    return table


def _add(one: Columns, other: Columns) -> Columns:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _alike(one: dict[str, Columns], other: dict[str, Columns]) -> bool:
    """Whether two layers have the same kinds of Linears in the same places in about the same shares."""
    if one.keys() != other.keys():
        return False
    return all(
        bool(a) == bool(b) and abs(a / sum(one[kind]) - b / sum(other[kind])) < SAME_SHARE
        for kind in one
        for a, b in zip(one[kind], other[kind], strict=True)
    )


def _join_layers(run: list[str], layers: dict[str, dict[str, Columns]]) -> LayerRow:
    total = layers[run[0]]
    for layer in run[1:]:
        total = {kind: _add(columns, layers[layer][kind]) for kind, columns in total.items()}
    return (run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"), total
