"""Arrays in host memory, and how matrices are aligned in memory of any kind."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
HostArray = npt.NDArray[Any]
ALIGNMENT_BYTES = 256  # of every matrix inside an allocation; what cudaMalloc itself gives


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of ALIGNMENT_BYTES."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
