"""The multiplications that the GPU kit times, against float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.gpu.gemm_cases import GemmCase, Matrix, OwnBlocks, OwnGemm, cases
from bench.random_weights import DTYPES, Weights
from offload.spec.linear import Layout, WeightFormat
from tests.gpu_kit.jobs import a_job


def half_values() -> Any:
    return Weights(DTYPES["fp16"]).tensor("w", (1 << 16, 1)).reshape(-1)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_wrong_column_shows(layout: Layout) -> None:
    case = GemmCase("k", Matrix("m", 96, 80), WeightFormat.FP16, layout, 3, half_values())
    stored = np.tile(case.values, 2)[128 : 128 + 96 * 80].astype(np.float64)
    w = stored.reshape(96, 80) if layout is Layout.KN else stored.reshape(80, 96).T
    y = (case.x().astype(np.float64) @ w).astype(np.float32)
    assert case.error(y, 256) < 1e-6
    assert case.error(y, 258) > 1e-2
    y[2, 79] = np.nan
    assert case.error(y, 256) == float("inf")


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_read_as_their_kernels_read_them(bits: int) -> None:
    case = OwnBlocks("k", Matrix("m", 128, 48), WeightFormat.FP16, Layout.NK, 2, half_values(), bits)
    raw = case.values.view(np.uint8)
    numbers = raw[512 : 512 + 48 * 128 * bits // 8].reshape(48, -1).astype(int)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(48, 128)
    begin = 512 + 48 * 128 * bits // 8
    scales = raw[begin : begin + 48 * 2 * 2].view(np.float16).reshape(48, 2).astype(np.float64)
    w = (numbers - 2 ** (bits - 1)) * np.repeat(scales, 64, axis=1)
    np.testing.assert_array_equal(case.weight(np.arange(48), 512), w.T)
    assert case.weight_bytes == 48 * (128 * bits // 8 + 4)
    assert case.error((case.x().astype(np.float64) @ w.T).astype(np.float32), 512) < 1e-6


def test_our_own_kernels_are_among_the_cases_where_they_can_be_launched() -> None:
    job = a_job(Path(), "cuda")
    made = list(cases(WeightFormat.FP16, "cuBLAS", True, job.sizes.layer, (1, 2), half_values()))
    assert {type(case) for case in made} == {GemmCase, OwnGemm, OwnBlocks}
    blocks = {"int8, blocks of 64", "int4, blocks of 64"}
    assert {case.weights for case in made} == {
        "fp16 KN",
        "fp16 NK",
        *blocks,
        *(f"{name}, x in int8" for name in blocks),
    }
    assert len(made) == 5 * 2 * 8
    assert {type(case) for case in cases(WeightFormat.FP32, "cuBLAS", True, job.sizes.layer, (1,), half_values())} == {
        GemmCase
    }
