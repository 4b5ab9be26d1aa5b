"""Measure how fast the CPU attends, apart from how fast it reads the cache."""

from statistics import median
from time import perf_counter

import numpy as np

from offload.attention import AttentionSpec, pair_flops
from offload.host_attention import AttentionArrays, AttentionCall, HostAttention
from offload.host_backend import NumbaBackend
from offload.host_calibration import Multiplier
from offload.rounds import rounds_within

# Eight query heads share a key/value head: reading takes a small part of the time, and its noise does as well.
_SPEC = AttentionSpec(num_heads=32, num_kv_heads=4, head_dim=64, scale=0.125)
_DEPTH = 1024  # tokens that the new one sees
_LAYER_BYTES = 2 * _SPEC.num_kv_heads * _SPEC.head_dim * _DEPTH * 2
_LEAST_SHARE = 0.1  # of the time is not reading, however the noise falls


def attention_rate(backend: NumbaBackend, weight: Multiplier, nbytes: int, rounds: int, longest_s: float) -> float:
    """`CpuRates.attention_flops_per_s`: the median over rounds, by turns with `weight`, which reading is taken from.

    A round is a decode step's attention in so many layers that their caches, in fp16, take `nbytes` bytes.
    """
    calls = _layers(HostAttention(backend), max(1, nbytes // _LAYER_BYTES))
    flops = len(calls) * _DEPTH * pair_flops(_SPEC.num_heads, _SPEC.head_dim)
    rates = []
    for counts in rounds_within(rounds, longest_s):  # the first compiles and touches
        started = perf_counter()
        weight.multiply(1)
        read_s = (perf_counter() - started) / weight.nbytes * len(calls) * _LAYER_BYTES
        started = perf_counter()
        for call in calls:
            call.run()
        elapsed_s = perf_counter() - started
        if counts:
            rates.append(flops / max(elapsed_s - read_s, _LEAST_SHARE * elapsed_s))
    return median(rates)


def _layers(attention: HostAttention, count: int) -> list[AttentionCall]:
    """Calls that append a token to a cache of their own, of `_DEPTH` tokens, and attend."""
    width = _SPEC.num_kv_heads * _SPEC.head_dim
    query, new = np.ones((1, _SPEC.num_heads * _SPEC.head_dim), np.float32), np.ones((1, width), np.float32)
    caches = np.ones((count, 2, _SPEC.num_kv_heads, _DEPTH, _SPEC.head_dim), np.float16)
    last, output = np.array([_DEPTH - 1], np.int32), np.empty_like(query)
    return [
        attention.bind(_SPEC, AttentionArrays(query, new, new, keys, values, None, None, last, output))
        for keys, values in caches
    ]
