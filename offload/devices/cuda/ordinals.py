"""Which GPU a CUDA ordinal means, asked of the driver without a context, so without any memory of the GPU.

CUDA leaves out what CUDA_VISIBLE_DEVICES hides, takes that variable's order, and else puts the fastest GPU first; the
driver's management library numbers all of them by their place on the bus.
"""

import ctypes

from offload.devices.cuda.errors import NO_DEVICE
from offload.errors import DeviceUnavailableError

_NAME_BYTES = 32  # "0000:01:00.0" and some more


def pci_bus_id(ordinal: int, library: str = "libcuda.so.1") -> str | None:
    """Locate the GPU on the bus; None where the driver's part of CUDA is missing or does not tell.

    Raises DeviceUnavailableError when CUDA sees no such GPU.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    status = cuda.cuInit(0)
    if status == NO_DEVICE:
        raise no_such_device(ordinal, 0)
    if status:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    if ordinal >= count.value:
        raise no_such_device(ordinal, count.value)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetPCIBusId(name, _NAME_BYTES, device):
        return None
    return name.value.decode()


def no_such_device(ordinal: int, visible: int) -> DeviceUnavailableError:
    """Say what is wrong with an ordinal that is too large."""
    if not visible:
        return DeviceUnavailableError("no CUDA device is visible (see CUDA_VISIBLE_DEVICES)")
    seen = "only CUDA device 0 is" if visible == 1 else f"CUDA devices 0 to {visible - 1} are"
    return DeviceUnavailableError(f"there is no CUDA device {ordinal}: {seen} visible (see CUDA_VISIBLE_DEVICES)")
