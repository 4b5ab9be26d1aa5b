"""The cut graph against the whole one, decode with cache against full prefill, chunks against one piece."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hybrid.engine.engine import Engine
from hybrid.loading.settings import DEMO_MODEL
from offload.plan.plan import HostTier
from tests.engines import PLACEMENTS, SHARED_MODELS, Placement, engine_on_cpu, engine_on_simulated, open_settings

_IDS = [1, 40, 77, 12, 9, 55, 60, 33, 21, 8, 99, 14]

MODELS = [
    pytest.param(DEMO_MODEL, id="demo"),
    pytest.param(SHARED_MODELS / "stories260K", id="stories260K"),
    pytest.param(SHARED_MODELS / "exports/stories260K/onnxstream-fp32", id="onnxstream"),
    pytest.param(SHARED_MODELS / "exports/stories260K/optimum-fp16", id="optimum fp16"),
    pytest.param(SHARED_MODELS / "exports/babyllama-tok105-1M/genai-cpu-fp32", id="genai"),
]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def _bound(model: Path) -> float:
    return 0.05 if "fp16" in model.name else 1e-4


def test_cut_and_whole_graph_agree(model: Path) -> None:
    opened = open_settings(model)
    if any(linear.spec.format != "fp32" for linear in opened.linears) and "fp16" not in model.name:
        pytest.skip("onnxruntime has no product of float activations and half weights to compare with")
    with closing(engine_on_cpu(opened, whole=True)) as whole, closing(_forced(model)) as cut:
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:]):
            assert np.abs(whole.prefill(ids) - cut.prefill(ids)).max() < _bound(model)


def test_decode_with_cache_agrees_with_full_prefill(model: Path) -> None:
    with closing(_forced(model)) as stepwise, closing(_forced(model)) as at_once:
        stepwise.prefill(_IDS[:3])
        for token_id in _IDS[3:]:
            logits = stepwise.decode(token_id)
        assert np.abs(logits - at_once.prefill(_IDS)).max() < _bound(model)


def test_a_prompt_longer_than_a_chunk_agrees_with_single_steps(model: Path) -> None:
    with closing(_forced(model)) as chunked, closing(_forced(model)) as stepwise:
        ids = (_IDS * 22)[: min(chunked.plan.chunk_tokens + 5, chunked.context_tokens)]
        logits = chunked.prefill(ids)
        for start in range(0, len(ids), 100):
            expected = stepwise.prefill(ids[start : start + 100])
        assert np.abs(logits - expected).max() < _bound(model)


def test_trim_forgets_what_came_after(model: Path) -> None:
    with closing(_forced(model)) as engine:
        engine.prefill(_IDS[:4])
        expected = engine.prefill(_IDS[4:6])
        engine.prefill(_IDS[6:])
        engine.trim(4)
        assert engine.position == 4
        assert np.abs(engine.prefill(_IDS[4:6]) - expected).max() < _bound(model)


def _forced(model: Path) -> Engine:
    none = next(placement for placement in PLACEMENTS if placement.name == "none")
    return engine_on_simulated(open_settings(model), none)


def test_weights_left_in_their_files_give_the_same_logits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(_forced(model)) as in_ram:
        expected = in_ram.prefill(_IDS)
    # As where nobody can tell how much RAM there is.
    monkeypatch.setattr("hybrid.loading.linear_loader.read_ram", lambda limits: None)
    with closing(_forced(model)) as mapped:
        np.testing.assert_array_equal(mapped.prefill(_IDS), expected)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_weights_read_from_the_disk_at_every_step_give_the_same_logits(model: Path, placement: Placement) -> None:
    opened = open_settings(model)
    with (
        closing(engine_on_simulated(opened, placement)) as in_ram,
        closing(engine_on_simulated(opened, placement, in_files=True)) as in_files,
    ):
        assert any(p.tier is HostTier.FILE for p in in_files.plan.placements) or not any(
            len(p.host) for p in in_ram.plan.placements
        )
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:]):
            np.testing.assert_array_equal(in_files.prefill(ids), in_ram.prefill(ids))


def test_weights_in_many_pieces_give_the_same_logits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_settings(model)
    none = next(placement for placement in PLACEMENTS if placement.name == "none")
    monkeypatch.setattr("offload.run.file_tier.PIECE_BYTES", 3000)
    with closing(_forced(model)) as in_ram, closing(engine_on_simulated(opened, none, in_files=True)) as in_files:
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:]):
            np.testing.assert_allclose(in_files.prefill(ids), in_ram.prefill(ids), atol=_bound(model))
