"""Load CuPy and the CUDA libraries that we call; the only importer of cupy, and late."""

from typing import Any

from offload.devices.cuda import nvml
from offload.devices.cuda.errors import NO_DEVICE
from offload.devices.cuda.ordinals import no_such_device
from offload.errors import DeviceUnavailableError


def import_cupy() -> tuple[Any, Any]:
    """CuPy and its runtime API. Raises DeviceUnavailableError, also where there is no driver that CuPy could use."""
    try:
        import cupy
        from cupy.cuda import runtime
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise DeviceUnavailableError(f"CuPy cannot be imported: {one_line(error)}") from None
        nvml.driver()  # without one, that is the reason to give: CuPy would not help
        raise DeviceUnavailableError(
            "CuPy is not installed: pip install 'hybrid-run[cu12]' (driver 525 or newer)"
            " or 'hybrid-run[cu13]' (driver 580 or newer)"
        ) from None
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(f"CuPy cannot be imported: {one_line(error)}") from None
    return cupy, runtime


def import_cublas(runtime: Any) -> Any:
    """CuPy's bindings of cuBLAS. Raises DeviceUnavailableError.

    CuPy takes only the cuBLAS of the CUDA that it was built for, so that of another CUDA beside it is as good as none.
    """
    try:
        from cupy_backends.cuda.libs import cublas
    except (ImportError, OSError) as error:
        major = runtime.runtimeGetVersion() // 1000
        raise DeviceUnavailableError(
            f"the cuBLAS library of CUDA {major} cannot be loaded (pip install 'cupy-cuda{major}x[ctk]' brings it):"
            f" {one_line(error)}"
        ) from None
    return cublas


def import_compiler() -> tuple[Any, Any, Any]:
    """CuPy's bindings of NVRTC and of the driver, and what makes a module of compiled code.

    Raises DeviceUnavailableError.
    """
    try:
        from cupy.cuda import driver, function
        from cupy_backends.cuda.libs import nvrtc
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(f"CuPy's bindings of NVRTC cannot be imported: {one_line(error)}") from None

    def load(code: bytes) -> Any:
        module = function.Module()
        module.load(code)
        return module

    return nvrtc, driver, load


def check_driver(runtime: Any, ordinal: int) -> None:
    """Raises DeviceUnavailableError unless there is a driver, new enough, and the device."""
    driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        raise DeviceUnavailableError("no NVIDIA driver is installed, or this process cannot see it")
    if driver // 1000 < built_for // 1000:
        other = ", or pip install 'hybrid-run[cu12]'" if driver // 1000 == 12 else ""
        raise DeviceUnavailableError(
            f"the NVIDIA driver is too old: it serves CUDA {_version(driver)} and CuPy was built for"
            f" CUDA {_version(built_for)}; update the driver{other}"
        )
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == NO_DEVICE:
            raise no_such_device(ordinal, 0) from None
        raise DeviceUnavailableError(f"CUDA does not start: {one_line(error)}") from None
    if not 0 <= ordinal < devices:
        raise no_such_device(ordinal, devices)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def one_line(error: object) -> str:
    """The text of an error without its line breaks."""
    return " ".join(str(error).split())
