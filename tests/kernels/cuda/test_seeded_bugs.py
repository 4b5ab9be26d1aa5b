"""Bugs planted into the CUDA sources: the shim and the checks of test_kernels.py catch each of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from offload.devices.cuda.kernels.sources import program
from offload.devices.cuda.own_kernels import CudaKernels, FloatRows, FloatWeight
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from tests.device.support import random_stored, to_float64, to_stored
from tests.kernels.cuda.guarded import guarded
from tests.kernels.cuda.host_shim import HostLauncher, KernelFault, Schedule
from tests.kernels.cuda.operands import BlockOperands, FloatOperands, address, multiply, multiply_int8

FP16, BF16, FP32 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32
Scenario = Callable[[CudaKernels], None]


def nk(kernels: CudaKernels) -> None:
    """Several warps a block, a tail of columns."""
    operands = FloatOperands.random(FP16, Layout.NK, 3, 18, 1032)
    operands.check(multiply(kernels, operands, with_bias=True), with_bias=True)


def nk_uneven(kernels: CudaKernels) -> None:
    operands = FloatOperands.random(BF16, Layout.NK, 2, 5, 43)
    operands.check(multiply(kernels, operands), with_bias=False)


def nk_split(kernels: CudaKernels) -> None:
    operands = FloatOperands.random(FP16, Layout.NK, 2, 3, 1032)
    operands.check(multiply(kernels, operands), with_bias=False)


def kn(kernels: CudaKernels) -> None:
    operands = FloatOperands.random(FP16, Layout.KN, 2, 264, 160)
    operands.check(multiply(kernels, operands), with_bias=False)


def kn_uneven(kernels: CudaKernels) -> None:
    operands = FloatOperands.random(FP16, Layout.KN, 2, 67, 43)
    operands.check(multiply(kernels, operands), with_bias=False)


def int4(kernels: CudaKernels) -> None:
    operands = BlockOperands.random(BlockFormat(4, 32, FP16), True, 2, 6, 100)
    operands.check(multiply(kernels, operands), with_bias=False)


def int4_without_zeros(kernels: CudaKernels) -> None:
    operands = BlockOperands.random(BlockFormat(4, 16, FP16), False, 2, 6, 96)
    operands.check(multiply(kernels, operands), with_bias=False)


def int4_int8(kernels: CudaKernels) -> None:
    operands = BlockOperands.random(BlockFormat(4, 32, FP16), True, 2, 6, 100)
    operands.check_int8(multiply_int8(kernels, operands), with_bias=False)


def int8_int8(kernels: CudaKernels) -> None:
    operands = BlockOperands.random(BlockFormat(8, 32, FP16), True, 2, 6, 100)
    operands.check_int8(multiply_int8(kernels, operands), with_bias=False)


def panel(kernels: CudaKernels) -> None:
    operands = BlockOperands.random(BlockFormat(4, 32, FP16), True, 1, 3, 101)
    out = guarded(np.full((3, 101), np.nan, np.float32))
    kernels.dequantise(operands.weight, 0, 3, address(out), FP32, 1)
    assert np.array_equal(out, operands.dequantised())


def fetched(kernels: CudaKernels) -> None:
    data = np.random.default_rng(0).integers(1, 256, 2112, np.uint8)
    for slack_bytes in (0, 3):
        source = guarded(data, slack_bytes)
        target = guarded(np.zeros(2112, np.uint8), slack_bytes)
        kernels.fetch(address(source), address(target), 2100, 1)  # the last 4 bytes are alone
        assert np.array_equal(target, np.append(data[:2100], np.zeros(12, np.uint8)))
    source, target = guarded(data), guarded(np.zeros(2112, np.uint8), 8)
    kernels.fetch(address(source), address(target), 2112, 1)
    assert np.array_equal(target, data)


def rounded(kernels: CudaKernels) -> None:
    values = [1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -1.7, *np.random.default_rng(0).standard_normal(128)]
    for count in (131, 132):  # 132 begin and end where 16 bytes do
        x = guarded(np.array(values[:count], np.float32))
        out = guarded(np.zeros(count, np.uint16))
        kernels.round_rows(FloatRows(address(x), 1, count), address(out), BF16, 1)
        assert np.array_equal(out, to_stored(x, BF16))
    nan, out = guarded(np.array([0x7FFFFFFF], np.uint32)), guarded(np.zeros(1, np.uint16))
    kernels.round_rows(FloatRows(address(nan), 1, 1), address(out), BF16, 1)
    assert np.isnan(to_float64(out, BF16)[0])


def bf16_panel(kernels: CudaKernels) -> None:
    rng = np.random.default_rng(0)
    for columns, inner, start, stop in ((40, 24, 8, 32), (19, 21, 3, 18)):
        stored = guarded(random_stored(rng, (inner, columns), BF16))
        out = guarded(np.zeros((inner, stop - start), np.float32))
        weight = FloatWeight(address(stored), BF16, Layout.KN, columns, inner)
        kernels.widen_bf16(weight, start, stop, address(out), 1)
        assert np.array_equal(out, to_float64(np.ascontiguousarray(stored[:, start:stop]), BF16))


@dataclass(frozen=True)
class Bug:
    """In the source of `scenario`'s kernels, `right` becomes `wrong`."""

    name: str
    scenario: Scenario
    right: str
    wrong: str


BUGS = (
    Bug("no barrier before the warps' sums are read", nk, "    __syncthreads();\n    const int i", "    const int i"),
    Bug("no barrier (KN)", kn, "    __syncthreads();\n", ""),
    Bug("a race: two warps write one place", nk, "[warp * VALUES + i] = sum", "[warp / 2 * VALUES + i] = sum"),
    Bug("shared memory overrun", nk, "[warp * VALUES + i] = sum", "[(warp + 1) * VALUES + i] = sum"),
    Bug("half of the lanes shuffle", nk, "const float sum = sum_of", "float sum = threadIdx.x & 16 ? 0 : sum_of"),
    Bug("a thread leaves before a barrier", nk, "__syncthreads();", "if (threadIdx.x == 9) return; __syncthreads();"),
    Bug("a lane is left out of the sum", nk, "int distance = 16;", "int distance = 8;"),
    Bug("lanes left out (KN)", kn, "int distance = 16; distance >=", "int distance = 16; distance >"),
    Bug("bias is forgotten", nk, "bias ? bias[column] : 0.0f", "0.0f"),
    Bug("reads beyond the last column", nk, "+ c, columns - 1)", "+ c, columns)"),
    Bug("writes beyond the last column", nk, "i < VALUES && column < columns", "i < VALUES"),
    Bug("the last chunk is left out", nk_uneven, "(inner + ELEMENTS - 1) / ELEMENTS", "inner / ELEMENTS"),
    Bug("the tail is read as a whole chunk", nk_uneven, "valid = inner - k", "valid = ELEMENTS"),
    Bug("one number too many", nk_uneven, "i < valid ? __ldg", "i <= valid ? __ldg"),
    Bug("a vector load without alignment", nk_uneven, "(ALIGNED && WORDS == 4)", "(WORDS == 4)"),
    Bug("wrong half of a word", nk_uneven, "i % 2 * 16", "(i + 1) % 2 * 16"),
    Bug("all splits write to one place", nk_split, "blockIdx.y * ROWS + i / COL", "0 * ROWS + i / COL"),
    Bug("the last split is left out", nk_split, "split < splits", "split < splits - 1"),
    Bug("splits overlap", nk_split, "begin + chunks_per_split", "begin + chunks_per_split + 1"),
    Bug("reads beyond the last row (KN)", kn_uneven, "k + j < inner ? valid_columns : 0", "valid_columns"),
    Bug("writes beyond the last column (KN)", kn_uneven, "if (column >= columns) continue;", ""),
    Bug("nibbles swapped", int4, "word >> i * BITS", "word >> (i ^ 1) * BITS"),
    Bug("zero points ignored", int4, "if (!zeros) return", "return"),
    Bug("zero points of the neighbour", int4, "block % 2 * 4 & 15", "(block + 1) % 2 * 4 & 15"),
    Bug("the scale of the next block", int4, "chunk * CHUNK >> block_log2", "(chunk * CHUNK >> block_log2) + 1"),
    Bug("x read beyond its end", int4, "x + (size_t)row * inner + k, inner - k", "x + (size_t)row * inner + k, WORD"),
    Bug("wrong default zero point", int4_without_zeros, "1 << (BITS - 1)", "(1 << (BITS - 1)) - 1"),
    Bug("nibbles swapped (int8 x)", int4_int8, "0x6420", "0x7531"),
    Bug("zero point without the sum of x", int4_int8, "-zero[c] * total", "-zero[c]"),
    Bug("unsigned codes as signed", int8_int8, " ^ 0x80808080u", ""),
    Bug("x is cut off, not rounded", int8_int8, "__float2int_rn(value * inverse)", "(int)(value * inverse)"),
    Bug("the padding of x is not zero", int8_int8, "i < valid ? __ldg(from + i) : 0.0f", "__ldg(from + i)"),
    Bug("a panel's rows overlap", panel, "k + i < inner", "k + i <= inner"),
    Bug("the last bytes are not fetched", fetched, "i < 16 && i < left", "i < left - 15"),
    Bug("bytes beyond the end are fetched", fetched, "i < 16 && i < left", "i < 16"),
    Bug("16 bytes are taken where fewer are left", fetched, "left >= 16 &&", "left >= 1 &&"),
    Bug("the alignment of one end only", fetched, "((size_t)from | (size_t)to) % 16", "(size_t)from % 1"),
    Bug("ties away from even", rounded, "0x7fffu + (high & 1u)", "0x8000u"),
    Bug("a NaN becomes infinity", rounded, "return high | 0x40u;", "return high & 0xff80u;"),
    Bug("numbers beyond the end are rounded", rounded, "i < 4 && i < left", "i < 4"),
    Bug("halves in the wrong order", rounded, "values[0]) | (unsigned)", "values[1]) | (unsigned)"),
    Bug("the pitch of the panel for the matrix's", bf16_panel, "blockIdx.x * pitch + at", "blockIdx.x * width + at"),
    Bug("columns beyond the panel", bf16_panel, "if (at + i < width)", "if (true)"),
    Bug("the wrong half of a word in a panel", bf16_panel, "widened<Bf16>(stored, i)", "widened<Bf16>(stored, i ^ 1)"),
)  # fmt: skip


def passes(scenario: Scenario, source: Callable[[str], str]) -> bool:
    """Say whether a scenario gives the expected result under every schedule."""
    launcher = HostLauncher(source=source)
    for schedule in Schedule:
        launcher.schedule = schedule
        try:
            scenario(CudaKernels(launcher, processors=1))
        except (AssertionError, KernelFault):
            return False
    return True


@pytest.mark.parametrize(
    "scenario", sorted({bug.scenario for bug in BUGS}, key=str), ids=lambda scenario: scenario.__name__
)
def test_nothing_is_caught_without_a_bug(scenario: Scenario) -> None:
    assert passes(scenario, program)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_caught(bug: Bug) -> None:
    planted = []

    def source(file: str) -> str:
        text = program(file)
        planted.append(bug.right in text)
        return text.replace(bug.right, bug.wrong)

    assert not passes(bug.scenario, source)
    assert any(planted)
