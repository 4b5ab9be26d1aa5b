"""Decode against peers, by turns: `python -m bench.compare --models DIR --llama-bench FILE --out DIR`.

`--models` holds the folders tinyllama-1.1b-fp16 (with model.gguf) and tinyllama-1.1b-fp32 that `bench.models` makes.
Every reading is a process of its own. Writes JSON and a Markdown table.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.interleave import Comparison, interleave
from bench.peers import llama_bench, peak_rss
from offload.spec.units import counted


@dataclass(frozen=True)
class ComparisonSettings:
    """The settings of a comparison."""

    models: Path
    llama_bench: Path
    threads: int
    rounds: int
    tokens: int
    only: str | None = None


class _Readings:
    """Runs a contestant and keeps everything it said."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def ours(self, name: str, model: Path, mode: str, settings: ComparisonSettings) -> Callable[[], float]:
        arguments = ["--model", str(model), "--mode", mode, "--threads", str(settings.threads)]
        arguments += ["--tokens", str(settings.tokens)]

        def run() -> float:
            done = peak_rss.run([sys.executable, "-m", "bench.decode", *arguments])
            if done.status:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            reading = json.loads(done.stdout.strip().splitlines()[-1]) | {"peak_rss_bytes": done.peak_rss_bytes}
            self.kept.setdefault(name, []).append(reading)
            return float(reading["decode_tokens_per_s"])

        return run

    def llama_cpp(self, name: str, model: Path, settings: ComparisonSettings) -> Callable[[], float]:
        asked = llama_bench.LlamaBenchSettings(
            settings.llama_bench, model, settings.threads, n_gen=settings.tokens, depth=16, repetitions=1
        )

        def run() -> float:
            reading = llama_bench.run(asked)
            assert reading.decode_tokens_per_s is not None
            self.kept.setdefault(name, []).append(
                {"decode_tokens_per_s": reading.decode_tokens_per_s, "peak_rss_bytes": reading.peak_rss_bytes}
            )
            return reading.decode_tokens_per_s

        return run

    def median(self, name: str, key: str) -> float:
        return statistics.median(float(reading[key]) for reading in self.kept[name])


def compare(settings: ComparisonSettings) -> dict[str, Any]:
    """Both comparisons, with all readings."""
    half, single = settings.models / "tinyllama-1.1b-fp16", settings.models / "tinyllama-1.1b-fp32"
    readings = _Readings()
    ratios = {}
    if settings.only != "fp32":
        fp16 = _take_turns(
            {
                "hybrid fp16": readings.ours("hybrid fp16", half, "planned", settings),
                "llama.cpp F16": readings.llama_cpp("llama.cpp F16", half / "model.gguf", settings),
            },
            settings,
        )
        ratios["hybrid fp16 / llama.cpp F16"] = fp16.ratio("hybrid fp16", "llama.cpp F16")
    if settings.only != "fp16":
        fp32 = _take_turns(
            {
                "hybrid fp32": readings.ours("hybrid fp32", single, "planned", settings),
                "onnxruntime fp32": readings.ours("onnxruntime fp32", single, "whole", settings),
            },
            settings,
        )
        ratios["hybrid fp32 / onnxruntime fp32"] = fp32.ratio("hybrid fp32", "onnxruntime fp32")
    plan = peak_rss.run(
        [sys.executable, "-m", "hybrid", "plan", "--json", "--cuda", "6", "--machine", "colab-t4", "--model", str(half)]
    )
    return {
        "command": _command(settings),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "ratios": ratios,
        "medians": {
            name: {key: readings.median(name, key) for key in kept[0] if isinstance(kept[0][key], int | float)}
            for name, kept in readings.kept.items()
        },
        "plan": {"wall_s": plan.wall_s, "peak_rss_bytes": plan.peak_rss_bytes, "status": plan.status},
        "readings": readings.kept,
    }


def _command(settings: ComparisonSettings) -> str:
    """The command line without the paths, which differ from machine to machine."""
    only = f" --only {settings.only}" if settings.only else ""
    return f"python -m bench.compare{only} --rounds {settings.rounds} --tokens {settings.tokens}"


def _take_turns(contestants: Mapping[str, Callable[[], float]], settings: ComparisonSettings) -> Comparison:
    def tell(index: int, name: str, reading: float) -> None:
        print(f"round {index + 1}: {name} {reading:.2f} tokens/s", file=sys.stderr, flush=True)

    return interleave(contestants, settings.rounds, warmup=1, told=tell)


def as_markdown(result: dict[str, Any]) -> str:
    """The table of a comparison."""
    rows = ["| | decode tokens/s | peak RSS | matmuls ms | attention ms | other ms |", "|---|---|---|---|---|---|"]
    for name, median in result["medians"].items():
        parts = [f"{median[key] * 1e3:.2f}" if key in median else "" for key in ("matmul_s", "attention_s", "other_s")]
        rss = f"{median['peak_rss_bytes'] / 2**30:.2f} GiB"
        rows.append(f"| {name} | {median['decode_tokens_per_s']:.2f} | {rss} | {' | '.join(parts)} |")
    rows += ["", *(f"- {name}: **{ratio:.2f}**" for name, ratio in result["ratios"].items())]
    plan = result["plan"]
    rows.append(f"- opening and planning: {plan['wall_s']:.2f} s, peak RSS {plan['peak_rss_bytes'] / 2**20:.0f} MiB")
    work = f"{counted(result['threads'], 'thread')}, {counted(result['rounds'], 'round')}"
    rows.append(f"- {result['machine']}, {work}: `{result['command']}`")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Compare as the flags say, write compare.json and compare.md, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", choices=("fp16", "fp32"), help="one of the two comparisons")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    result = compare(
        ComparisonSettings(flags.models, flags.llama_bench, flags.threads, flags.rounds, flags.tokens, flags.only)
    )
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    (flags.out / "compare.md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
