"""Prefill and decode speed of onnxruntime-genai: `python bench/peers/genai_speed.py --model DIR --threads 2`.

Runs alone, in an environment that has onnxruntime-genai; DIR is made by its model builder. Ends in one line of JSON
with the keys of `bench.speed`.
"""

import argparse
import json
import statistics
import time
from typing import Any

import onnxruntime_genai as genai

PREFILL_TOKENS, DEEP_TOKENS = 128, 1024


def _generator(model: Any, length: int) -> Any:
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    return genai.Generator(model, params)


def _prefill_s(generator: Any, tokens: int) -> float:
    started = time.perf_counter()
    generator.append_tokens([(7 * number) % 1000 + 3 for number in range(tokens)])
    return time.perf_counter() - started


def _step_s(generator: Any, tokens: int) -> float:
    times = []
    for _ in range(tokens + 1):
        started = time.perf_counter()
        generator.generate_next_token()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first only samples from the prompt's logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    flags = parser.parse_args()
    config = genai.Config(flags.model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": flags.threads}}}}))
    model = genai.Model(config)
    prefill_s = min(_prefill_s(_generator(model, 256), PREFILL_TOKENS) for _ in range(2))
    shallow, deep = _generator(model, 2000), _generator(model, 2000)
    _prefill_s(shallow, 1)
    shallow_s = _step_s(shallow, flags.tokens)
    del shallow
    _prefill_s(deep, DEEP_TOKENS)
    result = {
        "prefill_tokens_per_s": PREFILL_TOKENS / prefill_s,
        "decode_tokens_per_s": 1 / shallow_s,
        "deep_decode_tokens_per_s": 1 / _step_s(deep, flags.tokens),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
