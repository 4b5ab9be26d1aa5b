"""Describes a step's work besides its Linears, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionWork:
    """What one attention has to do for a token that it sees; `window` are the most tokens that each query sees."""

    cache_bytes_per_token: int
    flops_per_pair: int  # of a new token and a token it sees: `attention.pair_flops`
    window: int | None = None


@dataclass(frozen=True)
class Stage:
    """Operators that need nothing from each other: what the host does, and which groups of Linears come then.

    `groups` are named as in `LinearSpec.group`; a step may end with a stage without any.
    """

    groups: tuple[str, ...]
    islands: int = 0
    attentions: tuple[AttentionWork, ...] = ()


@dataclass(frozen=True)
class StepShape:
    """The work of a step besides its Linears, in running order."""

    stages: tuple[Stage, ...]
    concat_cache: bool = False  # True: every step also rewrites the whole cache

    @property
    def islands(self) -> int:
        """Count the islands of all stages."""
        return sum(stage.islands for stage in self.stages)


@dataclass(frozen=True)
class Workload:
    """One step: `rows` new tokens after `depth` tokens in the cache; `prefill` says whose ranges are streamed."""

    depth: int
    rows: int = 1
    prefill: bool = False
