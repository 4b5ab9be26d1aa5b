"""Measuring a device: of the simulated one, exactly the rates that it was told to model."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest

from offload.calibrate.device import DeviceEffort, DeviceMeter
from offload.devices.base import Device
from offload.devices.cuda.device import CudaDevice
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.rates import SimulatedRates, same_rate
from offload.errors import OutOfDeviceMemoryError
from offload.machine.profile import GpuRates
from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import BlockFormat, WeightFormat
from offload.spec.units import MIB
from tests.device.emulated_cupy import EmulatedCupy


def measure(device: Device, effort: DeviceEffort | None = None) -> GpuRates:
    meter = DeviceMeter(device, effort)
    try:
        return meter.rates(pageable_bytes_per_s=123.0)
    finally:
        meter.close()


HALF_FP32 = {"fp32": 40e12, "fp16": 80e12, "bf16": 60e12}


@pytest.mark.parametrize(
    "modelled",
    [
        SimulatedRates(),
        SimulatedRates(3e9, 2e9, 50e-6, 80e9, same_rate(2e12), 30e-6, wait_s=20e-6),
        SimulatedRates(50e9, 40e9, 2e-6, 900e9, HALF_FP32, 3e-6),
    ],
)
@pytest.mark.parametrize("own_kernels", [True, False])
def test_a_simulated_device_is_measured_as_it_was_modelled(modelled: SimulatedRates, own_kernels: bool) -> None:
    device = SimulatedDevice(256 * MIB, 5 * MIB, 3 * MIB, modelled, own_kernels=own_kernels)
    rates = measure(device)
    assert rates.bus_bytes_per_s == pytest.approx(modelled.copy_bytes_per_s, rel=0.01)
    assert rates.bus_back_bytes_per_s == pytest.approx(modelled.copy_back_bytes_per_s, rel=0.01)
    assert rates.vram_bytes_per_s == pytest.approx(modelled.vram_bytes_per_s, rel=0.01)
    assert rates.flops_per_s == pytest.approx(dict(modelled.flops_per_s), rel=0.01)
    assert rates.copy_s == pytest.approx(modelled.copy_latency_s + modelled.wait_s / 64, rel=0.03)
    assert rates.launch_s == pytest.approx(modelled.launch_s + modelled.wait_s / 64, rel=0.03)
    trip_s = modelled.copy_s(8192) + modelled.copy_back_s(8192) + modelled.wait_s
    assert rates.round_trip_s == pytest.approx(trip_s, rel=0.01)  # without what was multiplied
    assert (rates.vram_bytes, rates.context_bytes, rates.workspace_bytes) == (256 * MIB, 5 * MIB, 3 * MIB)
    assert rates.pageable_bytes_per_s == 123.0  # what is not modelled is taken from elsewhere
    assert "simulated" in rates.name


@dataclass(frozen=True)
class WaveRates(SimulatedRates):
    """An H200: each of 132 multiprocessors has a tile of y at a time, and a wave of them takes as long half empty."""

    def multiply_s(self, stored: WeightFormat | BlockFormat, columns: int, in_features: int, rows: int) -> float:
        """See SimulatedRates."""
        if rows <= MAX_ROWS:
            return super().multiply_s(stored, columns, in_features, rows)
        waves = -(-(-(-rows // 128) * -(-columns // 256)) // 132)
        wave_s = 132 * 128 * 256 * in_features * 2 / self.flops_per_s[WeightFormat.FP16]
        return self.launch_s + waves * wave_s + 4 * rows * (in_features + columns) / self.vram_bytes_per_s


def test_pieces_are_large_enough_for_a_fast_device() -> None:
    rates = WaveRates(vram_bytes_per_s=4.8e12, flops_per_s=same_rate(790e12))
    meter = DeviceMeter(SimulatedDevice(141 << 30, 0, 0, rates, hollow=True), replace(DeviceEffort(), rounds=1))
    assert meter.flops_rates()["fp16"] == pytest.approx(790e12, rel=0.2)
    meter.close()
    effort = DeviceEffort()
    assert effort.weight_bytes / 2 / rates.vram_bytes_per_s > 100e-6
    assert 2 * 1024 * effort.gemm_features**2 / rates.flops_per_s["fp16"] > 100e-6


def test_a_device_gets_its_memory_back() -> None:
    device = SimulatedDevice(64 * MIB)
    measure(device)
    assert device.memory().free_bytes == 64 * MIB
    with pytest.raises(OutOfDeviceMemoryError):
        measure(SimulatedDevice(1 * MIB))


def test_a_simulated_bus_takes_nothing_from_the_host() -> None:
    class Untouched:
        nbytes = 1

        def multiply(self, rows: int) -> None:
            raise AssertionError("nothing is to be timed")

    meter = DeviceMeter(SimulatedDevice(64 * MIB))
    assert meter.ram_share_beside_bus(Untouched()) == 1.0


def test_pageable_memory_is_memory_that_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel backs what is only read by one page of zeros, whatever its size."""
    copied = []

    class Watched(EmulatedCupy):
        def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
            super().memcpyAsync(dst, src, nbytes, kind, stream)
            if kind == 1 and not self._is_pinned(src, nbytes):
                copied.append(ctypes.string_at(src, nbytes))

    cupy = Watched()
    cupy.takes_pageable = True
    cupy.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    device = CudaDevice()
    measure(device, DeviceEffort(copy_bytes=1 << 16, weight_bytes=1 << 16, gemm_features=64, rounds=2))
    device.close()
    assert copied
    assert all(map(any, copied))


def test_the_calls_for_cuda_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = EmulatedCupy()
    cupy.takes_pageable = True
    cupy.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    device = CudaDevice()
    effort = DeviceEffort(copy_bytes=1 << 16, weight_bytes=1 << 16, gemm_features=64, rounds=2)
    rates = measure(device, effort)
    assert all(value > 0 for name, value in vars(rates).items() if name.endswith("bytes_per_s"))
    assert rates.flops_per_s.keys() == {"fp32", "fp16", "bf16"}
    assert all(value > 0 for value in rates.flops_per_s.values())
    assert rates.pageable_bytes_per_s != 123.0

    class Reading:
        nbytes = 1 << 16

        def multiply(self, rows: int) -> None:
            np.ones(self.nbytes, np.uint8).sum()

    meter = DeviceMeter(device, effort)
    assert 0 < meter.ram_share_beside_bus(Reading()) <= 1
    meter.close()
    device.close()
