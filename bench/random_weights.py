"""Random values of weights, in the types that weights are stored in."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SCALE = 0.02  # standard deviation of every matrix; keeps activations finite in fp16 at any depth listed here
BLOCK = 4_194_301  # random values drawn once; prime, so no two rows of a matrix start at the same value


@dataclass(frozen=True)
class Dtype:
    """One storage type: its names in safetensors and in config.json, and the numpy type holding its bits."""

    safetensors: str
    torch: str
    numpy: np.dtype[Any]


DTYPES: Mapping[str, Dtype] = {
    "fp16": Dtype("F16", "float16", np.dtype("<f2")),
    "bf16": Dtype("BF16", "bfloat16", np.dtype("<u2")),  # numpy has no bfloat16: its bits in an integer
    "fp32": Dtype("F32", "float32", np.dtype("<f4")),
}


class Weights:
    """Random tensors of one dtype, made on demand; the same seed and name always give the same values."""

    def __init__(self, dtype: Dtype, seed: int = 0) -> None:
        block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32) * np.float32(SCALE)
        self.dtype = dtype
        self._matrix = _cast(block, dtype)  # (BLOCK,)
        self._norm = _cast(block + np.float32(1), dtype)  # (BLOCK,) norms stay near one, but are not constant

    def tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        """Values of tensor `name`: N(0, 0.02) for a matrix, N(1, 0.02) for a vector; `shape`, dtype.numpy."""
        block = self._norm if len(shape) == 1 else self._matrix
        flat = np.empty(int(np.prod(shape)), self.dtype.numpy)
        # It starts where its name says, so every file format and every order of writing gets the same.
        start, done = zlib.crc32(name.encode()) % BLOCK, 0
        while done < flat.size:
            piece = block[start : start + flat.size - done]
            flat[done : done + piece.size] = piece
            start, done = 0, done + piece.size
        return flat.reshape(shape)


def _cast(values: npt.NDArray[np.float32], dtype: Dtype) -> Array:
    if dtype.torch != "bfloat16":
        return values.astype(dtype.numpy)
    bits = values.view(np.uint32)
    # Round to nearest, ties to even: add just under half of the last bit kept, and that bit itself.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(dtype.numpy)
