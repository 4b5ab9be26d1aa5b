"""Steps of made-up models."""

from collections.abc import Sequence

from offload.spec.linear import LinearSpec
from offload.spec.step import AttentionWork, Stage, StepShape


def step_of(
    linears: Sequence[LinearSpec], attention: AttentionWork | None = None, islands: int = 1, last_islands: int = 1
) -> StepShape:
    """So many islands before each group of Linears, and after the last; attention before the second of each layer."""
    layers: dict[str, str] = {linear.group: linear.layer for linear in linears}
    seen: list[str] = []
    stages = []
    for group, layer in layers.items():
        seen.append(layer)
        stages.append(Stage((group,), islands, (attention,) if attention and seen.count(layer) == 2 else ()))
    return StepShape((*stages, Stage((), last_islands)))
