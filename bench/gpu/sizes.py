"""Sizes the kit's measurements: all of it, a quick look, or the least that shows that the kit works."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.shapes import SHAPES, Shape
from offload.spec.units import GIB, MIB


@dataclass(frozen=True)
class ModelRuns:
    """One model at several budgets, as shares of its Linears' bytes; in the order in which they are worth most."""

    shape: str
    dtype: str
    shares: tuple[float, ...]
    longest_s: float  # a run that would begin with less time left is left out


@dataclass(frozen=True)
class Sizes:
    """See the fields. `layer` is the decoder whose Linears the kernels and the overlap are measured with."""

    layer: Shape
    weight_bytes: int  # weights to walk through, many times what caches hold
    copy_bytes: int
    rows: tuple[int, ...]  # of x
    repetitions: int
    overlap_layers: int
    overlap_steps: int
    models: tuple[ModelRuns, ...]
    prompt_tokens: int
    decode_tokens: int
    context_tokens: int
    threads: int | None  # of the CPU; None: all cores
    calibrates_well: bool  # False: as little as shows that it works
    tests: tuple[str, ...]  # arguments of pytest
    timeline_model: tuple[str, str]  # shape, dtype


_ALL = (0.5, 1.0, 0.0, 0.25, 0.75)
_ON_GPU = ("-m", "gpu", "tests/device", "tests/gpu", "tests/parity", "tests/kernels")
SIZES: Mapping[str, Sizes] = {
    "full": Sizes(
        layer=SHAPES["mistral-7b"],
        weight_bytes=2 * GIB,
        copy_bytes=256 * MIB,
        rows=(1, 2, 4, 8),
        repetitions=24,
        overlap_layers=6,
        overlap_steps=12,
        models=(
            ModelRuns("tinyllama-1.1b", "fp16", _ALL, 20),
            ModelRuns("mistral-7b", "fp16", _ALL, 45),
            ModelRuns("tinyllama-1.1b", "bf16", (0.5, 1.0), 20),
            ModelRuns("mistral-7b", "bf16", (0.5,), 45),
        ),
        prompt_tokens=256,
        decode_tokens=16,
        context_tokens=512,
        threads=None,
        calibrates_well=True,
        tests=_ON_GPU,
        timeline_model=("tinyllama-1.1b", "fp16"),
    ),
    "quick": Sizes(
        layer=SHAPES["mistral-7b"],
        weight_bytes=GIB,
        copy_bytes=256 * MIB,
        rows=(1, 8),
        repetitions=12,
        overlap_layers=2,
        overlap_steps=8,
        models=(ModelRuns("tinyllama-1.1b", "fp16", (0.5, 1.0, 0.0), 20),),
        prompt_tokens=256,
        decode_tokens=16,
        context_tokens=512,
        threads=None,
        calibrates_well=True,
        tests=_ON_GPU,
        timeline_model=("tinyllama-1.1b", "fp16"),
    ),
    "rehearsal": Sizes(
        layer=SHAPES["tiny"],
        weight_bytes=MIB,
        copy_bytes=MIB,
        rows=(1, 2),
        repetitions=2,
        overlap_layers=2,
        overlap_steps=3,
        models=(ModelRuns("tiny", "fp16", (0.5, 0.0), 1),),
        prompt_tokens=8,
        decode_tokens=3,
        context_tokens=64,
        threads=1,
        calibrates_well=False,
        tests=("-k", "simulated and fp16", "tests/device/test_multiply.py"),
        timeline_model=("tiny", "fp16"),
    ),
}
