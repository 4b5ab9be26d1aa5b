"""Memory refused again and again makes the plan smaller; the text is the same. One refusal: see test_faults.py."""

from contextlib import closing

import pytest

from hybrid.loading.opened_model import OpenedModel
from offload.spec.units import format_bytes
from tests.engines import engine_on, greedy
from tests.faults.recovery import faulty as faulty_devices
from tests.faults.recovery.engines import (
    BUDGET_BYTES,
    GOLDEN,
    TOKENS,
    columns,
    engine_for,
    simulated,
    three_ways,
    tokens_of,
)


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("first", [1, 3, 5])
def test_everything_refused_from_some_allocation_on(
    two_layers: OpenedModel, expected: list[int], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = faulty_devices.simulated(monkeypatch, refused=tuple(range(first, 1000)))
    with closing(engine_on(faulty.device, two_layers, three_ways, faulty_devices.BUDGET_BYTES, threads=1)) as engine:
        assert columns(engine.plan)[:2] == (0, 0)
        lines = engine.plan.warnings
        assert len(lines) == len(faulty.calls.refusals) > 1
        assert greedy(engine, GOLDEN.prompt_ids, len(expected))[0] == expected
    assert faulty.used_bytes() == 0


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
    assert all(part in refused for part in (format_bytes(device.refusals[0][0]), "VRAM"))
    assert "VRAM" in short
    assert "pinned RAM" in again
    assert device.why_lost in lost
    assert device.peak_bytes <= BUDGET_BYTES
