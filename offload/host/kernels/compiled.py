"""The CPU kernels as machine code, compiled when first needed and kept on disk."""

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
import numpy as np
from numba.core import types

from offload.host.kernels import (
    attention,
    jobs,
    loops,
    quant_few,
    quant_ir,
    quant_one,
    quant_x,
    requantise,
    softmax,
    team,
    tiles,
)
from offload.host.kernels.cache import kernels_kept
from offload.spec.arrays import FloatArray
from offload.spec.linear import WeightFormat

_SIGNATURES = (
    loops.SIGNATURES | tiles.SIGNATURES | jobs.SIGNATURES | attention.SIGNATURES | softmax.SIGNATURES | team.SIGNATURES
)
_QUANTISED_SIGNATURES = quant_x.SIGNATURES | quant_one.SIGNATURES | quant_few.SIGNATURES | requantise.SIGNATURES
# Sums may be taken in any order; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}


def kernel_address(function: Callable[..., None], weight_format: WeightFormat | None = None) -> int:
    """The address of a function of this package's files, compiled (0.1 to 0.4 s) unless it is cached.

    `weight_format` is for functions that take a pointer to stored weights, or to a cache.
    """
    return int(_compiled(function, weight_format).address)


def quantised_kernel_address(function: Callable[..., None], bits: int, block: int, stored: WeightFormat) -> int:
    """The address of a function for block-quantised weights, compiled (0.1 to 0.5 s) unless it is cached.

    `stored` is the format of the scales, or of the weights that are to be put into blocks.
    """
    return int(_compiled_quantised(function, bits, block, stored).address)


@functools.cache
def launcher() -> Callable[..., None]:
    """`team.run` as a Python function that lets other Python threads run, compiled (0.5 s) unless it is cached."""
    signature = types.void(*_SIGNATURES[team.run])
    compiled: Callable[..., None] = _cached_if_possible(
        lambda cache: numba.njit(signature, nogil=True, cache=cache)(team.run)
    )
    return compiled


@functools.cache
def _compiled(function: Callable[..., None], weight_format: WeightFormat | None) -> Any:
    stored = loops.POINTERS[weight_format.value] if weight_format else None
    signature = types.void(*(stored if kind is None else kind for kind in _SIGNATURES[function]))
    return _cached_if_possible(
        lambda cache: numba.cfunc(signature, cache=cache, fastmath=_FASTMATH, error_model="numpy")(function)
    )


@functools.cache
def _compiled_quantised(function: Callable[..., None], bits: int, block: int, stored: WeightFormat) -> Any:
    signature = types.void(*quant_ir.signature(_QUANTISED_SIGNATURES[function], bits, block, stored))
    return _cached_if_possible(lambda cache: numba.cfunc(signature, cache=cache, error_model="numpy")(function))


def _cached_if_possible(build: Callable[[bool], Any]) -> Any:
    with kernels_kept() as is_kept:
        if is_kept:
            with suppress(Exception):  # a full disk, or a cache that cannot be read; a mistake of ours comes again
                return build(True)
    return build(False)  # for this process only


def check_array(name: str, array: FloatArray, shape: tuple[int, int]) -> None:
    """Raise ValueError for an array that a kernel could not read or write."""
    if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous float32 {list(shape)}, not {array.dtype}{list(array.shape)}")
