"""Every placement of every Linear gives the golden tokens of real models, and logits within a stated bound.

Models that are trained get every placement. Exports of them store the same Linears in other ways: each gets the
placement with columns in all three places, which reads them in every way, and one of the others, by turn.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.engine.engine import Engine
from hybrid.loading.settings import DEMO_MODEL
from offload.plan.plan import HostTier
from offload.plan.scratch import MAX_ROWS
from tests import onnxruntime_int8
from tests.engines import (
    PLACEMENTS,
    SHARED_MODELS,
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


Case = tuple[str, Path, Path, float]  # name, model, golden tokens, bound on the logits


def _cases() -> Iterator[Case]:
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


def _check(engine: Engine, case: Case, tokens: int = _TOKENS, chunk: int | None = None) -> None:
    _, folder, path, bound = case
    golden = read_golden(path)
    with closing(engine):
        ids, first = greedy(engine, golden.prompt_ids, min(tokens, len(golden.greedy_ids)), chunk)
    assert ids == golden.greedy_ids[: len(ids)]
    if "q8dyn" in folder.name and not onnxruntime_int8.is_exact():
        return  # the logits were recorded where it is
    if "qdq" not in folder.name:  # multiplied exactly here; in ort.json with rounded activations
        assert np.abs(first - golden.first_step_logits).max() < bound


def _placed() -> Iterator[Any]:
    """Cases with the placements they get."""
    others = [placement for placement in PLACEMENTS if placement.name != "three ways"]
    for number, case in enumerate(CASES):
        for placement in PLACEMENTS:
            is_export = case[2].name == "ort.json"
            if not is_export or placement.name == "three ways" or placement is others[number % len(others)]:
                yield pytest.param(case, placement, id=f"{case[0]}-{placement.name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_cpu_alone(case: Case) -> None:
    _skip_if_absent(case)
    _check(engine_on_cpu(open_settings(case[1])), case)


@pytest.mark.parametrize(("case", "placement"), list(_placed()))
def test_the_simulated_device(case: Case, placement: Placement) -> None:
    _skip_if_absent(case)
    # A device multiplies more rows than that as fp16, and that too tips roundings to int8.
    chunk = MAX_ROWS if case[3] == _ROUNDED_BOUND else None
    _check(engine_on_simulated(open_settings(case[1]), placement), case, chunk=chunk)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize(("every", "piece_bytes"), [(1, 8 << 20), (2, 3000)])
def test_weights_read_from_the_file_at_every_step(
    case: Case, every: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be, or every other one; whole, and piece by piece."""
    _skip_if_absent(case)
    monkeypatch.setattr("offload.run.file_tier.PIECE_BYTES", piece_bytes)
    opened = open_settings(case[1])
    engine = engine_with_files(opened, every)
    in_files = [p.linear.name for p in engine.plan.placements if p.tier is HostTier.FILE]
    assert in_files == [linear.spec.name for linear in opened.linears[::every] if not linear.spec.host_only_reason]
    _check(engine, case, _FEW_TOKENS)


def _skip_if_absent(case: Case) -> None:
    if not case[2].is_file():
        pytest.skip(f"{case[2]} is absent")


def test_golden_models_are_found_or_said_to_be_absent() -> None:
    if not SHARED_MODELS.is_dir():
        pytest.skip(f"{SHARED_MODELS} is absent: only the demo model was tested")
    assert len(CASES) > 15
