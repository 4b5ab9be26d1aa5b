"""Measure attention on the CPU: how fast it reads the cache, and how fast it computes with it."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from offload.calibrate.rounds import rounds_within
from offload.host.attention import AttentionArrays, AttentionCall, HostAttention
from offload.host.backend import NumbaBackend
from offload.spec.attention import AttentionSpec, pair_flops

_HEADS, _HEAD_DIM = 32, 64
_KV_HEADS = (4, 32)  # the same heads compute the same; with one of their own each, they read eight times as much
_DEPTH = 2048  # tokens that the new one sees: enough for waking threads to be a small part
_LEAST_SHARE = 0.1  # of the time is reading, and computing, however the noise falls


@dataclass(frozen=True)
class AttentionRates:
    """See the fields of `CpuRates`."""

    bytes_per_s: float
    flops_per_s: float


def attention_rates(backend: NumbaBackend, nbytes: int, rounds: int, longest_s: float) -> AttentionRates:
    """Rates from the median times of two decode steps that take turns, over fp16 caches of `nbytes` bytes in all."""
    layers = max(1, nbytes // sum(map(_layer_bytes, _KV_HEADS)))
    attention = HostAttention(backend)
    steps = [_calls(attention, kv_heads, layers) for kv_heads in _KV_HEADS]
    times: list[tuple[float, ...]] = []
    for counts in rounds_within(rounds, longest_s):  # the first compiles and touches
        reading = tuple(_elapsed_s(step) / layers for step in steps)
        if counts:
            times.append(reading)
    return rates_from(*map(median, zip(*times, strict=True)))


def rates_from(few_s: float, many_s: float) -> AttentionRates:
    """The rates with which a layer of few key/value heads takes `few_s`, and one of many `many_s`.

    What the times differ by is reading; see `plan.cost.attention_s`.
    """
    few_bytes, many_bytes = map(_layer_bytes, _KV_HEADS)
    bytes_per_s = (many_bytes - few_bytes) / max(many_s - few_s, _LEAST_SHARE * many_s)
    compute_s = max(few_s - few_bytes / bytes_per_s, _LEAST_SHARE * few_s)
    return AttentionRates(bytes_per_s, _DEPTH * pair_flops(_HEADS, _HEAD_DIM) / compute_s)


def _layer_bytes(kv_heads: int) -> int:
    return 2 * kv_heads * _DEPTH * _HEAD_DIM * 2


def _calls(attention: HostAttention, kv_heads: int, layers: int) -> list[AttentionCall]:
    """Calls that append a token to a cache of their own, of `_DEPTH` tokens, and attend."""
    spec = AttentionSpec(_HEADS, kv_heads, _HEAD_DIM, _HEAD_DIM**-0.5)
    query, new = np.ones((1, _HEADS * _HEAD_DIM), np.float32), np.ones((1, kv_heads * _HEAD_DIM), np.float32)
    caches = np.ones((layers, 2, kv_heads, _DEPTH, _HEAD_DIM), np.float16)
    last, output = np.array([_DEPTH - 1], np.int32), np.empty_like(query)
    return [
        attention.bind(spec, AttentionArrays(query, new, new, keys, values, None, None, last, output))
        for keys, values in caches
    ]


def _elapsed_s(calls: list[AttentionCall]) -> float:
    started = perf_counter()
    for call in calls:
        call.run()
    return perf_counter() - started
