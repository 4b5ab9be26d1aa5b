"""A prompt whose host columns cross the bus, and one where they may not: the tokens stay the same."""

from contextlib import closing
from typing import Any

import pytest

from hybrid.errors import ContextFullError
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from offload.devices.simulated.device import SimulatedDevice
from offload.errors import PinningError
from offload.plan.request import CHUNK_TOKENS
from offload.plan.shares import Shares
from tests.engines import Placement, engine_on_simulated, greedy, open_settings, read_golden
from tests.parity.test_golden_tokens import DEMO_GOLDEN

ALL_ON_DEVICE = Placement(
    "all on the device in prefill",
    lambda number, linear: Shares(resident=0.4, streamed=0.2, prefill=0.6),
    prefill_tokens=2,
)


def refuse(device: SimulatedDevice, part: Any) -> None:
    raise PinningError("no page may be locked")


@pytest.mark.parametrize("refused", [False, True])
def test_prefill_gives_the_golden_tokens(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if refused:
        monkeypatch.setattr(SimulatedDevice, "pin", refuse)
    golden = read_golden(DEMO_GOLDEN)
    with engine_on_simulated(open_settings(DEMO_MODEL), ALL_ON_DEVICE) as engine:
        ids, _ = greedy(engine, golden.prompt_ids, 20)
        assert engine.plan.warnings[-1:] == (
            ("prefill streams no host columns: no page may be locked",) if refused else ()
        )
    assert ids == golden.greedy_ids[:20]


def test_how_much_of_a_prefill_is_read_is_told_after_each_part_of_it() -> None:
    told: list[tuple[int, int]] = []
    with closing(open_engine(RunSettings(cuda="0"))) as engine:
        engine.on_read = lambda read, tokens: told.append((read, tokens))
        engine.prefill([5] * (CHUNK_TOKENS + 40))
        engine.decode(5)
    assert told == [(CHUNK_TOKENS, CHUNK_TOKENS + 40), (CHUNK_TOKENS + 40, CHUNK_TOKENS + 40)]


@pytest.mark.parametrize(("context_tokens", "may_grow"), [(None, False), (16, True)])
def test_a_larger_context_is_advised_only_where_the_model_takes_one(context_tokens: int | None, may_grow: bool) -> None:
    with open_engine(RunSettings(cuda="0", context_tokens=context_tokens)) as engine:
        assert engine.context_may_grow == may_grow
        with pytest.raises(ContextFullError) as caught:
            engine.prefill([1] * (engine.context_tokens + 1))
    assert ("--context" in str(caught.value)) == may_grow
