"""CPU speed against peers, by turns: `python -m bench.peer_grid --model DIR --llama-bench FILE --out DIR`.

`--model` is a folder tinyllama-1.1b-fp16 of `bench.models` with model.gguf and what llama-quantize --pure makes of it,
model-Q8_0.gguf and model-Q4_0.gguf. Prefill of 128 tokens and decode after 0 and 1024 tokens; fp16 against F16, 8-bit
against Q8_0, 4-bit (blocks of 64) against Q4_0 and, with `--genai`, onnxruntime-genai. Every reading is a process of
its own. Writes peer_grid.json and peer_grid.md.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import llama_bench, peak_rss
from offload.spec.units import counted

MEASURES = {
    "prefill_tokens_per_s": "prefill 128",
    "decode_tokens_per_s": "decode after 0",
    "deep_decode_tokens_per_s": "decode after 1024",
}
_GGUF = {"fp16": "model.gguf", "int8": "model-Q8_0.gguf", "int4": "model-Q4_0.gguf"}
_PEERS = {"fp16": "llama.cpp F16", "int8": "llama.cpp Q8_0", "int4": "llama.cpp Q4_0"}
_GENAI = "onnxruntime-genai int4"
Reading = dict[str, float]


@dataclass(frozen=True)
class Grid:
    """The contestants of a grid. `genai` is a model folder and the Python that has onnxruntime-genai."""

    model: Path
    llama_bench: Path
    threads: int
    rounds: int
    tokens: int
    formats: tuple[str, ...]
    genai: tuple[Path, Path] | None

    def contestants(self, weight_format: str) -> list[str]:
        """Ours first."""
        others = [_PEERS[weight_format]] + ([_GENAI] if weight_format == "int4" and self.genai else [])
        return [f"hybrid {weight_format}", *others]

    def read(self, weight_format: str, name: str) -> Reading:
        """One process of one contestant; for llama.cpp one for each depth."""
        if name == _GENAI:
            assert self.genai is not None
            folder, python = self.genai
            script = Path(__file__).parent / "peers" / "genai_speed.py"
            return _last_line([str(python), str(script), "--model", str(folder), *self._counts()])
        if name.startswith("llama.cpp"):
            return self._llama_cpp(self.model / _GGUF[weight_format])
        kept = [] if weight_format == "fp16" else ["--host-dtype", weight_format]
        return _last_line([sys.executable, "-m", "bench.speed", "--model", str(self.model), *kept, *self._counts()])

    def _counts(self) -> list[str]:
        return ["--threads", str(self.threads), "--tokens", str(self.tokens)]

    def _llama_cpp(self, model: Path) -> Reading:
        def run(n_prompt: int, depth: int) -> llama_bench.LlamaBenchResult:
            asked = llama_bench.LlamaBenchSettings(
                self.llama_bench, model, self.threads, n_prompt, self.tokens, depth, repetitions=1
            )
            return llama_bench.run(asked)

        shallow, deep = run(128, 0), run(0, 1024)
        return {
            "prefill_tokens_per_s": shallow.prefill_tokens_per_s or 0.0,
            "decode_tokens_per_s": shallow.decode_tokens_per_s or 0.0,
            "deep_decode_tokens_per_s": deep.decode_tokens_per_s or 0.0,
            "peak_rss_bytes": max(shallow.peak_rss_bytes, deep.peak_rss_bytes),
        }


def _last_line(command: list[str]) -> Reading:
    done = peak_rss.run(command)
    if done.status:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    reading: Reading = json.loads(done.stdout.strip().splitlines()[-1])
    return reading | {"peak_rss_bytes": done.peak_rss_bytes}


def run(grid: Grid) -> dict[str, Any]:
    """All rounds; in each, all contestants of a format one after another, so that ratios compare neighbours."""
    readings: dict[str, dict[str, list[Reading]]] = {f: {c: [] for c in grid.contestants(f)} for f in grid.formats}
    for number in range(grid.rounds):
        for weight_format, contestants in readings.items():
            for name, kept in contestants.items():
                kept.append(grid.read(weight_format, name))
                speeds = ", ".join(f"{kept[-1][key]:.1f}" for key in MEASURES)
                print(f"round {number + 1}: {name}: {speeds} tokens/s", file=sys.stderr, flush=True)
    return {
        "command": f"python -m bench.peer_grid --rounds {grid.rounds} --tokens {grid.tokens}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": grid.threads,
        "ratios": {f: _ratios(contestants) for f, contestants in readings.items()},
        "readings": readings,
    }


def _ratios(contestants: dict[str, list[Reading]]) -> dict[str, Reading]:
    """For every peer and measure the median over the rounds of ours / theirs."""
    ours, *others = contestants
    return {
        peer: {
            key: statistics.median(a[key] / b[key] for a, b in zip(contestants[ours], contestants[peer], strict=True))
            for key in MEASURES
        }
        for peer in others
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Medians of every contestant in tokens/s, and the ratio of ours to each peer."""
    rows = [f"| | {' | '.join(MEASURES.values())} | peak RSS |", "|---|" + "---|" * (len(MEASURES) + 1)]
    for contestants in result["readings"].values():
        for name, kept in contestants.items():
            cells = [f"{statistics.median(reading[key] for reading in kept):.1f}" for key in MEASURES]
            rss = statistics.median(reading["peak_rss_bytes"] for reading in kept) / 2**30
            rows.append(f"| {name} | {' | '.join(cells)} | {rss:.2f} GiB |")
    for weight_format, peers in result["ratios"].items():
        for peer, ratios in peers.items():
            cells = [f"**{ratios[key]:.2f}**" for key in MEASURES]
            rows.append(f"| hybrid {weight_format} / {peer} | {' | '.join(cells)} | |")
    rows += ["", f"- {result['machine']}, {counted(result['threads'], 'thread')}: `{result['command']}`"]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run the grid as the flags say, write JSON and Markdown, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--genai", type=Path, nargs=2, metavar=("DIR", "PYTHON"), help="its model and its Python")
    parser.add_argument("--formats", nargs="+", choices=tuple(_GGUF), default=tuple(_GGUF))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    genai = (flags.genai[0], flags.genai[1]) if flags.genai else None
    formats = tuple(flags.formats)
    grid = Grid(flags.model, flags.llama_bench, flags.threads, flags.rounds, flags.tokens, formats, genai)
    result = run(grid)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "peer_grid.json").write_text(json.dumps(result, indent=1) + "\n")
    (flags.out / "peer_grid.md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
