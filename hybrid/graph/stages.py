"""The stages of a step: `Program` -> what comes before which Linears, as the planner gets it."""

from collections.abc import Sequence

from hybrid.graph.cache_shape import attention_flops, cache_bytes
from hybrid.graph.decoder import CachePair
from hybrid.graph.program import OutsideAttention, Program, ProgramLevel
from offload.spec.attention import pair_flops
from offload.spec.step import AttentionWork, Stage


def stages(program: Program, cache: Sequence[CachePair]) -> tuple[Stage, ...]:
    """Describe every level of `program`, in running order; `cache` says which inputs are cached."""
    pairs = {pair.past: pair for pair in cache}
    found = []
    for level in program.levels:
        attentions = [_attention_work(program, attention) for attention in level.attentions]
        read = _cache_read_by_island(level, pairs)
        if read:
            attentions.append(_island_work(program, read))
        groups = tuple(dict.fromkeys(linear.group for linear in level.linears))
        found.append(Stage(groups, islands=int(level.island is not None), attentions=tuple(attentions)))
    return tuple(found)


def attends(level: ProgramLevel, cache: Sequence[CachePair]) -> bool:
    """Tell whether the cache is read in a level."""
    return bool(level.attentions or _cache_read_by_island(level, {pair.past: pair for pair in cache}))


def _cache_read_by_island(level: ProgramLevel, pairs: dict[str, CachePair]) -> list[CachePair]:
    if level.island is None:
        return []
    return [pairs[info.name] for info in level.island.inputs if info.name in pairs]


def _attention_work(program: Program, attention: OutsideAttention) -> AttentionWork:
    spec = attention.spec
    bits = sum(program.element_type(name).bits for name in (attention.past_key, attention.past_value))
    return AttentionWork(
        cache_bytes_per_token=spec.num_kv_heads * spec.head_dim * bits // 8,
        flops_per_pair=pair_flops(spec.num_heads, spec.head_dim),
        window=spec.window,
    )


def _island_work(program: Program, read: Sequence[CachePair]) -> AttentionWork:
    """What is told of attention in an island is what it reads: all of it, whatever the window."""
    return AttentionWork(cache_bytes(program.graph, read, 1), attention_flops(program.graph, read))
