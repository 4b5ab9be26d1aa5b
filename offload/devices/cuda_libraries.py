"""Load CuPy and the CUDA libraries that we call; the only importer of cupy, and late."""

from typing import Any

from offload.errors import DeviceUnavailableError

_NO_DEVICE = 100  # cudaError_t


def import_cupy() -> tuple[Any, Any]:
    """CuPy and its runtime API. Raises DeviceUnavailableError."""
    try:
        import cupy
        from cupy.cuda import runtime
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise DeviceUnavailableError(f"CuPy cannot be imported: {one_line(error)}") from error
        raise DeviceUnavailableError(
            "CuPy is not installed: pip install 'hybrid-run[cu12]' (driver 525 or newer)"
            " or 'hybrid-run[cu13]' (driver 580 or newer)"
        ) from error
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(f"CuPy cannot be imported: {one_line(error)}") from error
    return cupy, runtime


def import_cublas() -> Any:
    """CuPy's bindings of cuBLAS. Raises DeviceUnavailableError."""
    try:
        from cupy_backends.cuda.libs import cublas
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(
            f"the cuBLAS library cannot be loaded (pip install 'cupy-cuda12x[ctk]' or"
            f" 'cupy-cuda13x[ctk]' brings it): {one_line(error)}"
        ) from error
    return cublas


def import_compiler() -> tuple[Any, Any, Any]:
    """CuPy's bindings of NVRTC and of the driver, and what makes a module of compiled code.

    Raises DeviceUnavailableError.
    """
    try:
        from cupy.cuda import driver, function
        from cupy_backends.cuda.libs import nvrtc
    except (ImportError, OSError) as error:
        raise DeviceUnavailableError(f"CuPy's bindings of NVRTC cannot be imported: {one_line(error)}") from error

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
        if error.status == _NO_DEVICE:
            raise DeviceUnavailableError("no CUDA device is visible (see CUDA_VISIBLE_DEVICES)") from error
        raise DeviceUnavailableError(f"CUDA does not start: {one_line(error)}") from error
    if not 0 <= ordinal < devices:
        raise DeviceUnavailableError(f"there is no CUDA device {ordinal}: {devices} are visible")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def one_line(error: object) -> str:
    """The text of an error without its line breaks."""
    return " ".join(str(error).split())
