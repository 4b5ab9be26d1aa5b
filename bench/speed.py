"""Prefill and decode speed of one model as a user runs it: `python -m bench.speed --model DIR`.

Ends in one line of JSON: prefill of 128 tokens, and decode with 0 and with 1024 tokens in the cache before it.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass

from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import RunSettings

PREFILL_TOKENS, DEEP_TOKENS = 128, 1024


@dataclass(frozen=True)
class Speed:
    """Tokens a second: of the best prefill, and medians over decode steps."""

    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    deep_decode_tokens_per_s: float
    predicted_decode_step_s: float
    ram_peak_bytes: int


def measure(settings: RunSettings, tokens: int, repetitions: int) -> Speed:
    """Load the model, then prefill and decode `tokens` at both depths."""
    started = time.perf_counter()
    with open_engine(settings) as engine:
        load_s = time.perf_counter() - started
        prefill_s = min(_prefill_s(engine, PREFILL_TOKENS) for _ in range(1 + repetitions))
        engine.trim(1)
        shallow_s = _step_s(engine, tokens)
        engine.trim(1)
        engine.prefill(_ids(DEEP_TOKENS - 1))
        deep_s = _step_s(engine, tokens)
        return Speed(
            load_s=load_s,
            prefill_tokens_per_s=PREFILL_TOKENS / prefill_s,
            decode_tokens_per_s=1 / shallow_s,
            deep_decode_tokens_per_s=1 / deep_s,
            predicted_decode_step_s=engine.plan.predicted.decode_step_s,
            ram_peak_bytes=engine.memory()["ram_peak_bytes"],
        )


def _prefill_s(engine: Engine, tokens: int) -> float:
    engine.trim(0)
    started = time.perf_counter()
    engine.prefill(_ids(tokens))
    return time.perf_counter() - started


def _step_s(engine: Engine, tokens: int) -> float:
    times = []
    for number in range(tokens):
        started = time.perf_counter()
        engine.decode(100 + number)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _ids(count: int) -> list[int]:
    return [(7 * number) % 1000 + 3 for number in range(count)]


def main() -> None:
    """Measure as the flags say and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cuda", default="0")
    parser.add_argument("--host-dtype", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=1, help="of the prefill, after the one that warms up")
    flags = parser.parse_args()
    settings = RunSettings(flags.model, cuda=flags.cuda, threads=flags.threads, host_dtype=flags.host_dtype)
    print(json.dumps(asdict(measure(settings, flags.tokens, flags.repetitions))))


if __name__ == "__main__":
    main()
