"""The roof: how fast a device reads and writes its own memory in a plain copy."""

from time import perf_counter
from typing import Any

from offload.calibrate.device import DeviceMeter
from offload.devices.base import Device

_DEVICE_TO_DEVICE = 3  # cudaMemcpyKind
_COPIES, _ROUNDS = 8, 5


def roof_bytes_per_s(device: Device, nbytes: int) -> tuple[float, str]:
    """Bytes read and written a second by a device-to-device copy of `nbytes`, and how that is known.

    A simulated device has no such copy: what it models for its memory stands for it.
    """
    if device.simulated:
        meter = DeviceMeter(device)
        try:
            return meter.vram_rate(), "modelled: the simulated device's memory"
        finally:
            meter.close()
    return _copy_rate(device, nbytes), "device-to-device copy, bytes read and bytes written"


def _copy_rate(device: Any, nbytes: int) -> float:
    """The best of some rounds of copies in a row."""
    source, target = device.allocate(nbytes), device.allocate(nbytes)
    best_s = float("inf")
    try:
        for _ in range(_ROUNDS + 1):  # the first one also makes the stream ready
            device.runtime.deviceSynchronize()
            began_s = perf_counter()
            for _ in range(_COPIES):
                device.runtime.memcpyAsync(target.address, source.address, nbytes, _DEVICE_TO_DEVICE, 0)
            device.runtime.deviceSynchronize()
            best_s = min(best_s, perf_counter() - began_s)
    finally:
        device.free(source)
        device.free(target)
    return 2 * _COPIES * nbytes / best_s
