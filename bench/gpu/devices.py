"""The device that the kit runs on."""

from offload.devices.base import Device


def open_device(name: str) -> Device:
    """ "cuda", or the device that the toy profile describes. Raises DeviceUnavailableError."""
    if name == "simulated":
        from hybrid.machine.profiles import find_profile
        from offload.devices.simulated.device import SimulatedDevice
        from offload.devices.simulated.rates import SimulatedRates

        gpu = find_profile("toy").gpu
        assert gpu is not None
        return SimulatedDevice(gpu.vram_bytes, gpu.context_bytes, gpu.workspace_bytes, SimulatedRates.of(gpu))
    from offload.devices.cuda.device import CudaDevice

    return CudaDevice()


def pci_bus_id() -> str:
    """Locate the GPU for NVML. Takes no memory of it."""
    from cupy.cuda import runtime

    return str(runtime.deviceGetPCIBusId(0))
