"""Every placement of every Linear gives the golden tokens of real models, and logits within a stated bound."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hybrid.config import DEMO_MODEL
from offload.devices.scratch import MAX_ROWS
from offload.plan import HostTier
from tests.engines import (
    PLACEMENTS,
    SHARED_MODELS,
    Golden,
    Placement,
    engine_on_cpu,
    engine_on_simulated,
    engine_with_files,
    greedy,
    open_settings,
    read_golden,
)

DEMO_GOLDEN = Path(__file__).parents[1] / "data" / "demo_golden.json"
_TOKENS = 40
_FEW_TOKENS = 12

# Bounds on the largest error of a first-step logit, by what the model computes with. fp32: another order of
# summation. fp16: activations rounded between operators, or on their way to the device, 2**-11 each time.
_FP32_BOUND = 5e-5
_FP16_BOUND = 0.05
# Activations rounded to int8 between operators, in steps of 1/127 of a block's largest: another order of summation in
# what comes before can tip such a rounding, and with it those of all later layers.
_ROUNDED_BOUND = 0.3


def _cases() -> Iterator[tuple[str, Path, Path, float]]:
    yield "demo", DEMO_MODEL, DEMO_GOLDEN, _FP16_BOUND
    for name in ("stories260K", "babyllama-tok105-1M"):
        folder = SHARED_MODELS / name
        yield name, folder, folder / "golden.json", _FP32_BOUND
    exports = SHARED_MODELS / "exports"
    for pattern in ("onnxstream", "optimum", "external", "genai", "transposed"):
        for folder in sorted(exports.glob(f"*/{pattern}*")):
            if folder.parent.name == "stories260K" and pattern == "genai":
                continue  # onnxruntime's attention refuses heads of 8 with its own rotary
            bound = _FP16_BOUND if "fp16" in folder.name else _FP32_BOUND
            if "int" in folder.name or folder.name.endswith("q4"):
                bound = _ROUNDED_BOUND
            yield f"{folder.parent.name}/{folder.name}", folder, folder / "ort.json", bound


CASES = list(_cases())


@pytest.fixture(params=CASES, ids=[case[0] for case in CASES])
def case(request: pytest.FixtureRequest) -> tuple[Path, Golden, float]:
    _, folder, golden, bound = request.param
    if not golden.is_file():
        pytest.skip(f"{golden} is absent")
    return folder, read_golden(golden), bound


def test_the_cpu_alone(case: tuple[Path, Golden, float]) -> None:
    folder, golden, bound = case
    with closing(engine_on_cpu(open_settings(folder))) as engine:
        ids, first = greedy(engine, golden.prompt_ids, min(_TOKENS, len(golden.greedy_ids)))
    assert ids == golden.greedy_ids[: len(ids)]
    if "qdq" not in folder.name:  # multiplied exactly here; in ort.json with rounded activations
        assert np.abs(first - golden.first_step_logits).max() < bound


@pytest.mark.parametrize(("every", "piece_bytes"), [(1, 8 << 20), (2, 3000)])
def test_weights_read_from_the_file_at_every_step(
    case: tuple[Path, Golden, float], every: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be, or every other one; whole, and piece by piece."""
    monkeypatch.setattr("offload.file_tier.PIECE_BYTES", piece_bytes)
    folder, golden, bound = case
    opened = open_settings(folder)
    with closing(engine_with_files(opened, every)) as engine:
        in_files = [p.linear.name for p in engine.plan.placements if p.tier is HostTier.FILE]
        ids, first = greedy(engine, golden.prompt_ids, min(_FEW_TOKENS, len(golden.greedy_ids)))
    assert in_files == [linear.spec.name for linear in opened.linears[::every] if not linear.spec.host_only_reason]
    assert ids == golden.greedy_ids[: len(ids)]
    if "qdq" not in folder.name:
        assert np.abs(first - golden.first_step_logits).max() < bound


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.name)
def test_the_simulated_device(case: tuple[Path, Golden, float], placement: Placement) -> None:
    folder, golden, bound = case
    # A device multiplies more rows than that as fp16, and that too tips roundings to int8.
    chunk = MAX_ROWS if bound == _ROUNDED_BOUND else None
    with closing(engine_on_simulated(open_settings(folder), placement)) as engine:
        ids, first = greedy(engine, golden.prompt_ids, min(_TOKENS, len(golden.greedy_ids)), chunk)
    assert ids == golden.greedy_ids[: len(ids)]
    if "qdq" not in folder.name:
        assert np.abs(first - golden.first_step_logits).max() < bound


def test_golden_models_are_found_or_said_to_be_absent() -> None:
    if not SHARED_MODELS.is_dir():
        pytest.skip(f"{SHARED_MODELS} is absent: only the demo model was tested")
    assert len(CASES) > 15
