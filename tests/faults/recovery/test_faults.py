"""One fault in a run: of every kind, at every place of every phase, on the simulated device and on CUDA.

A place is an allocation, or an operation: one of every level of a step, another each time. The run goes on with a
smaller plan or without the device, takes no more than the budget, and its tokens are the same.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import pytest

from hybrid.engine.engine import Engine
from hybrid.loading.opened_model import OpenedModel
from offload.errors import DEVICE_MEMORY, PINNED_RAM
from offload.plan.plan import Plan
from tests.engines import engine_on, greedy
from tests.faults.recovery.engines import GOLDEN, columns, three_ways
from tests.faults.recovery.faulty import BUDGET_BYTES, Faulty, cuda, simulated

PROMPT = GOLDEN.prompt_ids
MakeDevice = Callable[..., Faulty]


class Phase(StrEnum):
    LOAD = "load"
    PREFILL = "prefill"
    DECODE = "decode"


class Kind(StrEnum):
    REFUSED = "refused"  # an allocation
    SHORT = "short"  # memory that an operation needs, as when a library loads a kernel at its first use
    LOST = "lost"


def engine_for(faulty: Faulty, model: OpenedModel) -> Engine:
    return engine_on(faulty.device, model, three_ways, BUDGET_BYTES, threads=1)


@dataclass(frozen=True)
class Usual:
    """A run in which nothing fails: its plan, allocations, and the first operation of every level by step."""

    plan: Plan
    allocations: int
    steps: list[list[int]]
    last: int

    def places(self, kind: Kind, phase: Phase) -> Iterator[int]:
        """Give the numbers of the allocations or operations that are to fail."""
        if kind is Kind.REFUSED:
            yield from range(1, self.allocations + 1)
            return
        loaded = self.steps[0][0]
        ends = [step[0] for step in self.steps[1:]]
        bounds = {
            Phase.LOAD: [*range(1, loaded, max(1, loaded // 8)), loaded],
            Phase.PREFILL: [*self.steps[0], ends[0]],
            Phase.DECODE: [*self.steps[1], ends[1]],
        }[phase]
        for number, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                yield start + number % (stop - start)


def usual_run(faulty: Faulty, model: OpenedModel, expected: list[int]) -> Usual:
    with closing(engine_for(faulty, model)) as engine:
        plan, allocations = engine.plan, faulty.calls.allocations
        assert plan.warnings == ()
        assert all(columns(plan))
        steps: list[list[int]] = []
        run = engine._linears.run

        def count(level: int, inputs: Any, outputs: Any) -> None:
            if level == 0:
                steps.append([])
            steps[-1].append(faulty.calls.operations + 1)
            run(level, inputs, outputs)

        engine._linears.run = count  # type: ignore[method-assign]
        assert greedy(engine, PROMPT, len(expected))[0] == expected
        return Usual(plan, allocations, steps, faulty.calls.operations)


ANYWHERE = [(Kind.REFUSED, Phase.LOAD), *((kind, phase) for kind in (Kind.SHORT, Kind.LOST) for phase in Phase)]
CASES = [
    *(pytest.param(simulated, *case, id=f"simulated-{'-'.join(case)}") for case in ANYWHERE),
    # Only cuBLAS runs short, and nothing is multiplied while weights are loaded.
    *(pytest.param(cuda, *case, id=f"CUDA-{'-'.join(case)}") for case in ANYWHERE if case != (Kind.SHORT, Phase.LOAD)),
]


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize(("make", "kind", "phase"), CASES)
def test_the_run_goes_on_with_the_same_tokens(
    make: MakeDevice,
    kind: Kind,
    phase: Phase,
    two_layers: OpenedModel,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = usual_run(make(monkeypatch), two_layers, expected)
    places = list(usual.places(kind, phase))
    assert len(places) >= 5
    for place in places:
        fault = {"refused": (place,)} if kind is Kind.REFUSED else {f"{kind}_at": place}
        faulty = make(monkeypatch, **fault)
        with closing(engine_for(faulty, two_layers)) as engine:
            said: list[str] = []
            engine.on_warning = said.append
            asked = [faulty.calls.asked_when_lost]
            logits = engine.prefill(PROMPT)
            ids = [int(logits.argmax())]
            while len(ids) < len(expected):
                ids.append(int(engine.decode(ids[-1]).argmax()))
                asked.append(faulty.calls.asked_when_lost)
            assert ids == expected
            assert engine.position == len(PROMPT) + len(expected) - 1
            plan, memory = engine.plan, engine.memory()
            assert len(plan.warnings) == 1
            assert said == ([] if phase is Phase.LOAD else list(plan.warnings))
            assert plan.total_vram_bytes <= memory["vram_peak_bytes"] <= memory["vram_budget_bytes"] == BUDGET_BYTES
            assert len({*asked, faulty.calls.asked_when_lost}) <= 2, "the device was used after it was lost"
            if kind is Kind.LOST:
                assert (plan.total_vram_bytes, columns(plan)[:2]) == (0, (0, 0))
                assert faulty.calls.why_lost in plan.warnings[0]
            else:
                assert faulty.used_bytes() == plan.total_vram_bytes
                check_smaller(usual.plan, plan, faulty.calls.refusals)
        if kind is not Kind.LOST:
            assert faulty.used_bytes() == 0
            del engine
            gc.collect()
            assert faulty.pinned_bytes() == 0


def check_smaller(before: Plan, plan: Plan, refusals: list[tuple[int, str]]) -> None:
    """By what was refused, of the memory that it was refused of; by some VRAM where nobody said how much."""
    asked_bytes, where = refusals[0] if refusals else (0, DEVICE_MEMORY)
    pinned = "pinned weights"
    if where == PINNED_RAM:
        assert plan.ram_bytes[pinned] <= max(0, before.ram_bytes[pinned] - asked_bytes)
    elif asked_bytes:
        assert plan.budget_bytes == max(0, before.total_vram_bytes - asked_bytes)
    else:
        assert plan.total_vram_bytes <= plan.budget_bytes < before.total_vram_bytes
        assert columns(plan)[0] > 0
