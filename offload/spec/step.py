"""Describes a step's work besides its Linears, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepShape:
    """The work of a step besides its Linears."""

    islands: int
    cache_bytes_per_token: int  # read by attention for every token already there
    attention_flops_per_pair: int  # of a new token and a token it sees, in all layers: `attention.pair_flops`
    concat_cache: bool  # True: every step also rewrites the whole cache


@dataclass(frozen=True)
class Workload:
    """One step: `rows` new tokens after `depth` tokens in the cache; `prefill` says whose ranges are streamed."""

    depth: int
    rows: int = 1
    prefill: bool = False
