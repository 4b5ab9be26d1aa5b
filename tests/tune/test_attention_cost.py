"""The cost of attention: by hand, by layout of heads, and as the calibration solves for it."""

from dataclasses import replace

import pytest

from hybrid.graph.cache_shape import attention_flops
from hybrid.graph.decoder import CachePair
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.machine.profiles import find_profile
from offload.calibrate.attention import AttentionRates, attention_rates, rates_from
from offload.host.backend import NumbaBackend
from offload.machine.profile import CpuRates
from offload.plan.cost import attention_s
from offload.spec.attention import pair_flops
from offload.spec.step import AttentionWork, Workload
from tests.unit.graph.test_attention_cut import CACHE, attention_graph

CPU = replace(
    find_profile("generic-cpu").cpu, attention_bytes_per_s=1e6, attention_flops_per_s=1e7, ram_bytes_per_s=4e6
)
WORK = AttentionWork(cache_bytes_per_token=100, flops_per_pair=3000)


def seconds(attention: AttentionWork, depth: int, rows: int = 1, concat_cache: bool = False) -> float:
    return attention_s(attention, concat_cache, CPU, Workload(depth, rows))


def test_reading_the_cache_and_computing_with_it_add_up() -> None:
    seen = 1000.5
    assert seconds(WORK, 1000) == pytest.approx(seen * 100 / 1e6 + seen * 3000 / 1e7)


def test_prefill_computes_for_every_token_but_reads_once() -> None:
    seen = 1000 + 256 / 2
    assert seconds(WORK, 1000, rows=256) == pytest.approx(seen * 100 / 1e6 + 256 * seen * 3000 / 1e7)


def test_a_cache_that_is_rewritten_is_read_and_written_at_the_rate_of_ram() -> None:
    more_s = seconds(WORK, 1000, concat_cache=True) - seconds(WORK, 1000)
    assert more_s == pytest.approx(2 * 1000.5 * 100 / 4e6)


def test_a_window_bounds_what_is_read_and_computed_but_not_what_is_rewritten() -> None:
    windowed = replace(WORK, window=64)
    assert seconds(windowed, 1000, rows=8) == pytest.approx(64 * 100 / 1e6 + 8 * 64 * 3000 / 1e7)
    assert seconds(windowed, 10) == seconds(WORK, 10)
    more_s = seconds(windowed, 1000, concat_cache=True) - seconds(windowed, 1000)
    assert more_s == pytest.approx(2 * 1000.5 * 100 / 4e6)


def layer(heads: int, kv_heads: int, head_dim: int) -> AttentionWork:
    """An attention with an fp16 cache."""
    return AttentionWork(4 * kv_heads * head_dim, pair_flops(heads, head_dim))


# GB/s of cache in fp16, 1024 tokens deep, of our kernel on two cores of an EPYC (Zen 4).
@pytest.mark.parametrize(
    ("layout", "cache_bytes_per_s"),
    [
        ((32, 4, 64), 11.4e9),
        ((32, 8, 64), 19.1e9),
        ((32, 16, 64), 21.7e9),
        ((32, 32, 64), 35.0e9),
        ((32, 8, 128), 22.4e9),
        ((64, 8, 128), 15.9e9),
    ],
)
def test_two_rates_are_right_within_a_fifth_for_all_layouts_of_heads(
    layout: tuple[int, int, int], cache_bytes_per_s: float
) -> None:
    cpu = replace(CPU, attention_bytes_per_s=42e9, attention_flops_per_s=200e9)
    attention = layer(*layout)
    measured_s = 1024 * attention.cache_bytes_per_token / cache_bytes_per_s
    assert attention_s(attention, False, cpu, Workload(1024)) == pytest.approx(measured_s, rel=0.2)


def with_rates(rates: AttentionRates) -> CpuRates:
    return replace(CPU, attention_bytes_per_s=rates.bytes_per_s, attention_flops_per_s=rates.flops_per_s)


def test_calibration_finds_the_rates_that_predict_what_it_measured() -> None:
    work = Workload(2047, 2)  # 2048 tokens seen by each
    few_s, many_s = 180e-6, 480e-6
    cpu = with_rates(rates_from(few_s, many_s))
    shapes = [replace(layer(32, kv_heads, 64), flops_per_pair=pair_flops(32, 64) // 2) for kv_heads in (4, 32)]
    assert [attention_s(shape, False, cpu, work) for shape in shapes] == pytest.approx([few_s, many_s])


@pytest.mark.parametrize(("few_s", "many_s"), [(2e-4, 1e-4), (1e-4, 1e-4), (1e-5, 9e-4)])
def test_noise_makes_no_rate_negative_or_endless(few_s: float, many_s: float) -> None:
    rates = rates_from(few_s, many_s)
    assert 0 < rates.bytes_per_s < 1e13
    assert 0 < rates.flops_per_s < 1e14


def test_both_rates_are_measured() -> None:
    rates = attention_rates(NumbaBackend(1), nbytes=9 << 20, rounds=1, longest_s=1.0)
    assert 1e8 < rates.bytes_per_s < 1e13
    assert 1e9 < rates.flops_per_s < 1e14


def test_query_heads_are_those_of_the_attention_and_else_those_of_the_cache() -> None:
    graph = attention_graph()  # 4 heads over 2 of 4
    assert attention_flops(graph, CACHE) == pair_flops(4, 4)
    concat = replace(graph, nodes=tuple(node for node in graph.nodes if node.name != "attention"))
    assert attention_flops(concat, CACHE) == pair_flops(2, 4)
    assert attention_flops(graph, ()) == 0
    assert attention_flops(graph, (*CACHE, CachePair("past_k", "b"), CachePair("past_v", "c"))) == 2 * pair_flops(4, 4)


def test_the_demo_model_attends_in_every_layer() -> None:
    opened = open_for_run(RunSettings(model=DEMO_MODEL))
    decoder, spec = opened.decoder, opened.attentions[0].spec
    layers = len(decoder.cache) // 2
    assert attention_flops(decoder.graph, decoder.cache) == layers * pair_flops(spec.num_heads, spec.head_dim)
