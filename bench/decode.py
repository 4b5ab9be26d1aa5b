"""Decode speed of one model in one way of running it, with its parts: `python -m bench.decode --model DIR`.

Ways to run: `planned` as `--cuda 0` would; `whole` as one onnxruntime session. Ends in one line of JSON.
"""

import argparse
import json
import statistics
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hybrid.engine.engine import Engine
from hybrid.graph.program import Program
from hybrid.loading.open_engine import load
from hybrid.loading.opened_model import OpenedModel, open_for_run, opened_model
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from hybrid.machine.threads import default_threads
from offload.observe.timeline import Timeline
from offload.run.recovery import Replanner

_TRACED_TOKENS = 16
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention", "Softmax")


@dataclass(frozen=True)
class DecodeTimes:
    """`step_s` is a median over steps, `decode_tokens_per_s` over all; the parts are means over traced steps.

    Attention inside an island counts the whole island, so `other_s` is what neither matmuls nor attention took.
    """

    mode: str
    threads: int
    prompt_tokens: int
    tokens: int
    load_s: float
    prefill_tokens_per_s: float
    step_s: float
    decode_tokens_per_s: float
    matmul_s: float
    attention_s: float
    other_s: float
    ram_peak_bytes: int


def measure(model: Path, mode: str, threads: int, prompt_tokens: int, tokens: int) -> DecodeTimes:
    """Load the model, run `prompt_tokens`, then decode `tokens` one by one, untraced and then traced."""
    timeline = Timeline()
    timeline.pause()
    started = time.perf_counter()
    opened = open_for_run(RunSettings(model=model))
    if mode == "whole":
        opened = uncut(opened)
    with closing(_engine(opened, threads, timeline)) as engine:
        load_s = time.perf_counter() - started
        ids = [(7 * number) % 1000 + 3 for number in range(prompt_tokens)]
        engine.prefill(ids)  # compiles, binds, touches
        engine.trim(0)
        started = time.perf_counter()
        engine.prefill(ids)
        prefill_s = time.perf_counter() - started
        steps = _steps(engine, tokens)
        engine.trim(prompt_tokens)
        timeline.resume()
        traced_s = statistics.fmean(_steps(engine, _TRACED_TOKENS))
        attention = {f"island {number}" for number in _attention_levels(opened.program)}
        islands = [span for span in timeline.spans() if span.track == "islands"]
        matmul_s = sum(s.duration_s for s in timeline.spans() if s.track == "linears") / _TRACED_TOKENS
        attending = [span for span in timeline.spans() if span.track == "attention"]
        attending += [span for span in islands if span.name in attention]
        attention_s = sum(span.duration_s for span in attending) / _TRACED_TOKENS
        return DecodeTimes(
            mode=mode,
            threads=threads,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            load_s=load_s,
            prefill_tokens_per_s=prompt_tokens / prefill_s,
            step_s=statistics.median(steps),
            decode_tokens_per_s=tokens / sum(steps),
            matmul_s=matmul_s,
            attention_s=attention_s,
            other_s=traced_s - matmul_s - attention_s,
            ram_peak_bytes=engine.memory()["ram_peak_bytes"],
        )


def _engine(opened: OpenedModel, threads: int, timeline: Timeline) -> Engine:
    target = choose_target(RunSettings(cuda="0"), look_in_profile)
    return load(opened, Replanner(plan_request(opened, target, {})), None, threads, timeline=timeline)


def uncut(opened: OpenedModel) -> OpenedModel:
    """The same model with all its Linears and attentions left to onnxruntime."""
    linears = tuple(
        replace(linear, spec=replace(linear.spec, host_only_reason="onnxruntime is measured"))
        for linear in opened.linears
    )
    return opened_model(opened.decoder, linears, opened.context_tokens, (), opened.host_format, opened.activations)


def _attention_levels(program: Program) -> list[int]:
    return [
        number
        for number, level in enumerate(program.levels)
        if level.island is not None and any(node.op_type in _ATTENTION for node in level.island.nodes)
    ]


def _steps(engine: Engine, tokens: int) -> list[float]:
    times = []
    for number in range(tokens):
        started = time.perf_counter()
        engine.decode(100 + number)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    """Measure as the flags say and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mode", choices=("planned", "whole"), default="planned")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--prompt", type=int, default=16, help="tokens in the cache before the first step")
    parser.add_argument("--tokens", type=int, default=32)
    flags = parser.parse_args()
    print(json.dumps(asdict(measure(flags.model, flags.mode, flags.threads, flags.prompt, flags.tokens))))


if __name__ == "__main__":
    main()
