"""A warm-up compiles and runs all that steps need, so that nothing is loaded later."""

from dataclasses import replace
from pathlib import Path

import pytest

from offload.devices.base import DeviceBlocks, DeviceWeight
from offload.devices.cuda.device import CudaDevice
from offload.plan.scratch import scratch_bytes
from offload.spec.linear import Activations, BlockFormat, Layout, LinearSpec, WeightFormat
from tests.device.support import linear
from tests.kernels.cuda.device_memory import Memory
from tests.kernels.cuda.emulated_nvrtc import Emulated, EmulatedNvrtc

FP16, BF16, FP32, INT8 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32, WeightFormat.INT8
NK, KN = Layout.NK, Layout.KN


def blocked(spec: LinearSpec, form: BlockFormat, activations: Activations = Activations.INT8) -> LinearSpec:
    return replace(spec, format=form.format, blocks=form, activations=activations)


LINEARS = (
    linear("q", "q", 512, 1200),
    linear("k", "q", 256, 64),
    linear("up", "up", 256, 2000, BF16, KN),
    linear("head", "head", 43, 2048, FP32),
    blocked(linear("o", "o", 136, 64), BlockFormat(8, 64, FP16)),
    blocked(linear("down", "down", 136, 64), BlockFormat(4, 32, FP16, True), Activations.FLOAT),
)


def test_a_warm_up_compiles_and_runs_all_that_steps_need(emulated: Emulated) -> None:
    """No step compiles, loads or allocates anything, on the device or the host, and none waits."""
    device = CudaDevice()
    blocks = dict(emulated.cupy.blocks)
    device.warm_up(LINEARS, 40)
    assert emulated.cupy.blocks == blocks, "it gave all back"
    compiled = len(emulated.nvrtc.compiled)
    memory, work = Memory(device), []
    for spec in LINEARS:
        columns, inner = min(spec.out_features, 64), spec.in_features
        shape = (columns, inner) if spec.layout is NK else (inner, columns)
        w: DeviceWeight = (
            DeviceBlocks(*memory.place(1 << 16), columns, inner, spec.blocks)
            if spec.blocks
            else (memory.array(shape, spec.format))
        )
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 40):
            x, y = memory.array((rows, inner), FP32), memory.array((rows, columns), FP32)
            nbytes = scratch_bytes(rows, columns, inner, spec.format, spec.blocks)
            work.append((x, w, y, spec.layout, memory.array((1, nbytes), INT8), spec.activations))
    pinned = device.allocate_pinned(1024)
    calls: list[str] = []
    emulated.cupy.fault = lambda name: calls.append(name) or 0  # type: ignore[func-returns-value]
    for operands in work:
        memory.stream.fetch(memory.array((1, 1024), INT8), pinned)
        memory.stream.multiply(*operands)
    assert set(calls) == {"launchKernel", "getDevice", "gemm"}
    assert len(emulated.nvrtc.compiled) == compiled
    device.close()


def test_a_warm_up_is_kept_for_the_next_run(emulated: Emulated) -> None:
    some = LINEARS[::4]
    CudaDevice().warm_up(some, 40)
    compiled = len(emulated.nvrtc.compiled)
    CudaDevice().warm_up(some[::-1], 20)
    assert len(emulated.nvrtc.compiled) == compiled


def test_what_a_warm_up_loads_is_counted(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice()
    before = device.fixed_bytes
    load = emulated.nvrtc.load
    monkeypatch.setattr(emulated.nvrtc, "load", lambda code: (emulated.cupy.malloc(1000), load(code))[1])
    device.warm_up(LINEARS, 1)
    taken = device.fixed_bytes["workspace"] - before["workspace"]
    assert taken >= 4000
    assert taken % 1000 == 0
    assert device.fixed_bytes["context"] == before["context"]


def test_a_warm_up_leaves_out_what_is_not_supported(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    EmulatedNvrtc(broken="no NVRTC").install(monkeypatch, emulated.cupy, tmp_path)
    device = CudaDevice()
    device.warm_up(LINEARS, 10)
    assert {name for name, _ in emulated.cupy.calls if "gemm" in name} == {"gemmEx", "sgemm"}
    assert emulated.cupy.blocks == {}
