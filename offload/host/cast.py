"""Rounding of activations on the CPU."""

from typing import Any

import numpy as np
import numpy.typing as npt

from offload.host.kernels import compiled, jobs, loops
from offload.host.team import PIECES, shared_team
from offload.spec.arrays import FloatArray
from offload.spec.linear import WeightFormat

_ALONE = 1 << 16  # elements that one thread rounds in less time than several need to wake up


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
    kernel = compiled.kernel_address(loops.cast, weight_format)
    task = np.array([kernel, x.ctypes.data, out.ctypes.data, x.size], np.int64)
    team = shared_team()
    pieces = 1 if x.size <= _ALONE else PIECES * team.threads
    team.run(compiled.kernel_address(jobs.round_off), (task.ctypes.data,), team.threads, pieces)
