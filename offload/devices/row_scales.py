"""Powers of two with which rows of activations fit fp16; those of models that were made in bf16 may exceed it."""

import numpy as np
import numpy.typing as npt

_LEAST, _MOST = 2.0**-6, 65504.0  # of the largest of a row that is left alone; fp16 is at full precision from 2**-14 on


def fp16_row_scales(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give the divisors that make rows of x [M, K] fit fp16, [M, 1], as row_scales.cu finds them.

    They are 1 for rows that fit as they are, and for those with a NaN or an infinity.
    """
    largest = np.abs(x).max(-1, keepdims=True)
    fits = (largest == 0) | ~np.isfinite(largest) | ((largest >= _LEAST) & (largest <= _MOST))
    exponents = np.maximum(largest.view(np.uint32) >> 23, 15) - np.uint32(14)
    return np.where(fits, np.float32(1), (exponents << 23).view(np.float32))
