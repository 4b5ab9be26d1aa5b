"""Runs in which a device fails in the middle."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hybrid.loading.planning import OpenedModel
from offload.observe.timeline import Timeline
from offload.plan.plan import Plan
from tests.faults.recovery.engines import BUDGET_BYTES, GOLDEN, TOKENS, engine_for, tokens_of

STEPS = {"prefill": 0, "decode": 2}


@dataclass
class Step:
    """The operations of a device in one step: the number of the first of every level, and of the last of all."""

    levels: list[int]
    last: int


def steps_of(demo: OpenedModel, make_device: Callable[[], Any]) -> list[Step]:
    """The operations of a run in which nothing fails."""
    device = make_device()
    with closing(engine_for(device, demo)) as engine:
        steps: list[Step] = []
        run = engine._linears.run

        def count_level(level: int, inputs: Any, outputs: Any) -> None:
            if level == 0:
                steps.append(Step([], 0))
            steps[-1].levels.append(device.operations + 1)
            run(level, inputs, outputs)
            steps[-1].last = device.operations

        engine._linears.run = count_level  # type: ignore[method-assign]
        tokens_of(engine)
    return steps


def chosen_operations(step: Step) -> Iterator[int]:
    """One operation of every level, another each time."""
    for number, (start, stop) in enumerate(pairwise([*step.levels, step.last + 1])):
        if stop > start:
            yield start + number % (stop - start)


def run_with_failure(demo: OpenedModel, device: Any, timeline: Timeline | None = None) -> tuple[Plan, list[str]]:
    """A run whose device fails in the middle; gives the plan at its end and the lines that were said."""
    said: list[str] = []
    with closing(engine_for(device, demo, timeline)) as engine:
        assert engine.plan.warnings == ()
        engine.on_warning = said.append
        logits = engine.prefill(GOLDEN.prompt_ids)
        ids = [int(logits.argmax())]
        refusals_when_lost = []
        while len(ids) < TOKENS:
            ids.append(int(engine.decode(ids[-1]).argmax()))
            refusals_when_lost.append(device.asked_when_lost)
        assert ids == GOLDEN.greedy_ids[:TOKENS]
        assert engine.position == len(GOLDEN.prompt_ids) + TOKENS - 1
        plan = engine.plan
        memory = engine.memory()
        assert plan.total_vram_bytes <= memory["vram_peak_bytes"] <= memory["vram_budget_bytes"] == BUDGET_BYTES
    assert len(set(refusals_when_lost) | {device.asked_when_lost}) <= 2, "the device was used after it was lost"
    return plan, said
