"""The CPU kernels as machine code, compiled when first needed and kept on disk; and rounding of activations.

numba's settings are made here, before its thread pool starts.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import config, types

from offload.kernels import (
    host_attention,
    host_jobs,
    host_loops,
    host_quant_few,
    host_quant_ir,
    host_quant_one,
    host_quant_x,
    host_softmax,
    requantise_loops,
)
from offload.specs import WeightFormat

FloatArray = npt.NDArray[np.float32]

_SIGNATURES = host_loops.SIGNATURES | host_jobs.SIGNATURES | host_attention.SIGNATURES | host_softmax.SIGNATURES
_QUANTISED_SIGNATURES = (
    host_quant_x.SIGNATURES | host_quant_one.SIGNATURES | host_quant_few.SIGNATURES | requantise_loops.SIGNATURES
)
# Sums may be taken in any order; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}
_ALONE = 1 << 16  # elements that one thread rounds in less time than several need to wake up


def set_threads(threads: int) -> None:
    """Have numba use `threads` threads, of OpenMP where there is a libgomp. Raises ValueError below 1.

    numba's pool has NUMBA_NUM_THREADS threads (default: the cores this process may use) and cannot grow.
    The number holds for the calling Python thread, which is to make the launches too.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    # A launch costs 2 µs with OpenMP and 55 µs with workqueue; a choice of the user's own is kept.
    if config.THREADING_LAYER_PRIORITY == ["tbb", "omp", "workqueue"]:
        config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    numba.set_num_threads(min(threads, config.NUMBA_NUM_THREADS))


def kernel_address(function: Callable[..., None], weight_format: WeightFormat | None = None) -> int:
    """The address of a function of this package's files, compiled (0.1 to 0.4 s) unless it is cached.

    `weight_format` is for functions that take a pointer to stored weights, or to a cache.
    """
    return int(_compiled(function, weight_format).address)


def quantised_kernel_address(function: Callable[..., None], bits: int, block: int, stored: WeightFormat) -> int:
    """The address of a function for weights in blocks, compiled (0.1 to 0.5 s) unless it is cached.

    `stored` is the format of the scales, or of the weights that are to be put into blocks.
    """
    return int(_compiled_quantised(function, bits, block, stored).address)


@functools.cache
def launcher(function: Callable[..., None] = host_jobs.launch) -> Callable[..., None]:
    """A function that launches threads, compiled (0.4 s) unless it is cached."""

    def build(cache: bool) -> Any:
        signature = types.void(*_SIGNATURES[function])
        return numba.njit(signature, parallel=True, nogil=True, cache=cache)(function)

    compiled: Callable[..., None] = _cached_if_possible(build)
    return compiled


@functools.cache
def _compiled(function: Callable[..., None], weight_format: WeightFormat | None) -> Any:
    stored = host_loops.POINTERS[weight_format.value] if weight_format else None
    signature = types.void(*(stored if kind is None else kind for kind in _SIGNATURES[function]))
    return _cached_if_possible(
        lambda cache: numba.cfunc(signature, cache=cache, fastmath=_FASTMATH, error_model="numpy")(function)
    )


@functools.cache
def _compiled_quantised(function: Callable[..., None], bits: int, block: int, stored: WeightFormat) -> Any:
    signature = types.void(*host_quant_ir.signature(_QUANTISED_SIGNATURES[function], bits, block, stored))
    return _cached_if_possible(lambda cache: numba.cfunc(signature, cache=cache, error_model="numpy")(function))


def _cached_if_possible(build: Callable[[bool], Any]) -> Any:
    try:
        return build(True)
    except (RuntimeError, OSError):
        return build(False)  # no folder that numba may write to, or a full disk: compile for this run only


def check_array(name: str, array: FloatArray, shape: tuple[int, int]) -> None:
    """Raise ValueError for an array that a kernel could not read or write."""
    if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous float32 {list(shape)}, not {array.dtype}{list(array.shape)}")


def cast_activations(x: FloatArray, out: npt.NDArray[Any], weight_format: WeightFormat) -> None:
    """Round activations to the type of the weights they are to meet: nearest even, as IEEE 754 has it.

    `x` is float32 and `out` has the format's storage dtype (bf16: uint16) and the shape of `x`; both are
    C-contiguous. A NaN stays a NaN, a value beyond fp16 becomes infinite. Raises ValueError.
    """
    if not weight_format.is_float:
        raise ValueError(f"activations cannot be cast to {weight_format}")
    if x.dtype != np.float32 or out.dtype != weight_format.storage_dtype or x.shape != out.shape:
        raise ValueError(f"cannot cast {x.dtype}{list(x.shape)} into {out.dtype}{list(out.shape)} as {weight_format}")
    if not (x.flags.c_contiguous and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("activations must be C-contiguous and the output writable")
    if weight_format is WeightFormat.FP32:
        np.copyto(out, x)
        return
    kernel = kernel_address(host_loops.cast, weight_format)
    task = np.array([kernel, x.ctypes.data, out.ctypes.data, x.size], np.int64)
    threads = 1 if x.size <= _ALONE else numba.get_num_threads()
    launcher()(kernel_address(host_jobs.round_off), task.ctypes.data, threads)
