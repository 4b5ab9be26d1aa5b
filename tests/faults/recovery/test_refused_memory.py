"""Memory that a device refuses makes the plan smaller; the text is the same."""

from contextlib import closing

import pytest

from hybrid.loading.planning import OpenedModel
from offload.errors import DEVICE_MEMORY, PINNED_RAM
from tests.faults.recovery.engines import BUDGET_BYTES, GOLDEN, TOKENS, columns, engine_for, simulated, tokens_of
from tests.faults.recovery.mid_run import STEPS, chosen_operations, run_with_failure, steps_of


def test_the_plan_has_columns_in_every_place(demo: OpenedModel) -> None:
    with closing(engine_for(simulated(), demo)) as engine:
        assert all(columns(engine.plan))
        assert engine.plan.warnings == ()
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]


@pytest.mark.usefixtures("fine_steps")
def test_every_allocation_refused_once(demo: OpenedModel) -> None:
    with closing(engine_for(simulated(), demo)) as engine:
        before = engine.plan
    kinds = []
    for number in range(1, 100):
        device = simulated(refused=(number,))
        with closing(engine_for(device, demo)) as engine:
            if not device.refusals:
                break
            assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
            plan = engine.plan
            (line,) = plan.warnings
            ((asked_bytes, where),) = device.refusals
            kinds.append(where)
            if where == PINNED_RAM:
                assert line.startswith("the system refused")
                left = before.ram_bytes["pinned weights"] - asked_bytes
                assert plan.ram_bytes["pinned weights"] <= max(0, left)
            else:
                assert line.startswith("the GPU refused")
                assert plan.budget_bytes == max(0, before.total_vram_bytes - asked_bytes)
            assert device.peak_bytes <= BUDGET_BYTES
            assert BUDGET_BYTES - device.memory().free_bytes == plan.total_vram_bytes
        assert device.memory().free_bytes == BUDGET_BYTES
        del engine
        assert device.pinned_bytes == 0
    assert set(kinds) == {DEVICE_MEMORY, PINNED_RAM}
    assert len(kinds) >= 6


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("first", [1, 3, 5])
def test_everything_refused_from_some_allocation_on(demo: OpenedModel, first: int) -> None:
    device = simulated(refused=tuple(range(first, 1000)))
    with closing(engine_for(device, demo)) as engine:
        assert columns(engine.plan)[:2] == (0, 0)
        lines = engine.plan.warnings
        assert len(lines) == len(device.refusals) > 1
        assert lines[-1].endswith(": the run goes on without it")
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
    assert device.memory().free_bytes == BUDGET_BYTES


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("step", STEPS)
def test_memory_runs_out_at_every_level(demo: OpenedModel, step: str) -> None:
    """As when a library needs some at the first use of a kernel."""
    for operation in chosen_operations(steps_of(demo, simulated)[STEPS[step]]):
        device = simulated(short_at=operation)
        plan, said = run_with_failure(demo, device)
        assert said == list(plan.warnings)
        assert len(said) == 1
        assert said[0].startswith("the GPU ran out of VRAM: the budget is now 2.")
        assert all(columns(plan))
        assert plan.total_vram_bytes <= plan.budget_bytes < BUDGET_BYTES
        assert device.peak_bytes <= BUDGET_BYTES
        assert device.memory().free_bytes == BUDGET_BYTES


def test_old_pinned_memory_is_gone_before_new_is_asked_for(demo: OpenedModel) -> None:
    device = simulated()
    with closing(engine_for(device, demo)) as engine:
        at_load = device.peak_pinned_bytes
        device.short_at = device.operations + 5
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(engine.plan.warnings) == 1
    assert device.peak_pinned_bytes == at_load


@pytest.mark.usefixtures("fine_steps")
def test_one_failure_after_another(demo: OpenedModel) -> None:
    """VRAM at load, then in mid-run, pinned memory while that is mended, the device at last."""
    device = simulated(refused=(2,))
    with closing(engine_for(device, demo)) as engine:
        device.short_at = device.operations + 40
        device.refused = (device.allocations + 3,)
        logits = engine.prefill(GOLDEN.prompt_ids)
        ids = [int(logits.argmax())]
        device.lost_at = device.operations + 40
        while len(ids) < TOKENS:
            ids.append(int(engine.decode(ids[-1]).argmax()))
        assert ids == GOLDEN.greedy_ids[:TOKENS]
        refused, short, again, lost = engine.plan.warnings
    assert refused == "the GPU refused 1.20 MiB of VRAM: the budget is now 1.76 MiB"
    assert short.startswith("the GPU ran out of VRAM: the budget is now")
    assert again.startswith("the system refused")
    assert again.endswith("of pinned RAM: no weights are streamed now")
    assert lost.startswith("the GPU is lost")
    assert device.peak_bytes <= BUDGET_BYTES
