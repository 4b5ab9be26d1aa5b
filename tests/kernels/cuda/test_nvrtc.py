"""The CUDA sources compile for every GPU that we support, and need as few registers as written down here."""

from pathlib import Path

import pytest

from offload.devices.cuda.kernels import launch
from offload.devices.cuda.kernels.launch import Launch
from offload.devices.cuda.kernels.sources import program
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from tests.kernels.cuda.nvrtc import Nvrtc, find_libraries

FP16, BF16, FP32 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32
# Turing (T4), Ampere (A100, RTX 30), Ada (RTX 40), Hopper (H100), Blackwell (RTX 50).
CAPABILITIES = (75, 80, 86, 89, 90, 120)

# Registers of a thread, by rows of x. A multiprocessor has 65536, so blocks of 128 threads fit 5, 4 and 3 times with
# 96, 128 and 168: 20, 16 and 12 warps, each with four loads of 16 bytes under way. That hides the latency of memory,
# 24 kB at the least being more than the 3 to 16 kB that bandwidth times latency comes to on these GPUs.
CEILINGS = {1: 96, 4: 128, 8: 168}
# Kernels that are no multiplications leave room for all threads that a multiprocessor can have, but quantise_rows,
# whose work is small.
OTHER_CEILING = 48


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    libraries = find_libraries()
    if not libraries:
        pytest.skip("NVRTC is not installed: pip install 'hybrid-run[kernels]'")
    return max((Nvrtc(path) for path in libraries), key=lambda library: library.version)


def multiplications(rows: int) -> list[Launch]:
    int4 = BlockFormat(4, 32, FP16)
    made = [launch.multiply_float(FP16, layout, rows, 64, 64, True, 1) for layout in Layout]
    made += [launch.multiply_blocks(int4, int8_rows, rows, 64, 64, True, 1) for int8_rows in (False, True)]
    return [each.launch for each in made]


def variants() -> list[Launch]:
    """Other formats, and operands that are not aligned."""
    made = [launch.multiply_float(BF16, layout, rows, 64, 64, False, 1) for layout in Layout for rows in (1, 8)]
    for int8_rows in (False, True):
        made.append(launch.multiply_blocks(BlockFormat(8, 32, FP32), int8_rows, 8, 64, 64, True, 1))
        made.append(launch.multiply_blocks(BlockFormat(4, 16, FP16), int8_rows, 3, 64, 64, True, 1))
        made.append(launch.multiply_blocks(BlockFormat(4, 32, FP16), int8_rows, 8, 64, 64, False, 1))
    return [each.launch for each in made]


def others() -> list[Launch]:
    int4, int8 = BlockFormat(4, 32, FP16), BlockFormat(8, 32, FP16)
    panels = [launch.dequantise(int4, FP16, 1, 64, True), launch.dequantise(int8, FP32, 1, 64, False)]
    panels += [launch.widen_bf16(1, 8, aligned) for aligned in (True, False)]
    rows = [launch.round_rows(form, 1, 1) for form in (FP16, BF16)] + [launch.row_scales(1), launch.scale_rows(1, 1)]
    return [*panels, *rows, launch.quantise_rows(1, 1), launch.sum_splits(1, 1), launch.fetch(1)]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_kernel_spills_or_takes_more_registers_than_planned(nvrtc: Nvrtc, capability: int) -> None:
    if capability not in nvrtc.capabilities:
        pytest.skip(f"NVRTC {nvrtc.version[0]}.{nvrtc.version[1]} does not compile for sm_{capability}")
    for rows, ceiling in CEILINGS.items():
        for each in multiplications(rows):
            check(nvrtc, each, capability, ceiling)
    for each in others():
        check(nvrtc, each, capability, OTHER_CEILING)


@pytest.mark.parametrize("each", variants(), ids=lambda each: each.kernel)
def test_no_variant_spills(nvrtc: Nvrtc, each: Launch) -> None:
    check(nvrtc, each, 75, 255)


def check(nvrtc: Nvrtc, each: Launch, capability: int, ceiling: int) -> None:
    usage = nvrtc.compile(program(each.program), [each.kernel], capability)[each.kernel]
    assert (usage.spilled_bytes, usage.stack_bytes) == (0, 0), f"{each.kernel} on sm_{capability}"
    assert usage.registers <= ceiling, f"{each.kernel} on sm_{capability}"


def test_spills_would_be_seen(nvrtc: Nvrtc) -> None:
    source = program("float_nk.cu").replace("blocks_at_once(ROWS, ALIGNED))", "8)")
    kernel = "multiply_float_nk<Fp16, 8, true>"
    assert nvrtc.compile(source, [kernel], 75)[kernel].spilled_bytes > 0


def test_errors_are_shown(nvrtc: Nvrtc) -> None:
    source = program("sum_splits.cu").replace("y[i] = sum;", "y[i] = some;")
    with pytest.raises(RuntimeError, match=r'sum_splits.cu\(\d+\): error: identifier "some"'):
        nvrtc.compile(source, ["sum_splits"], 75)


def test_without_wheels_there_is_nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_libraries() == []
