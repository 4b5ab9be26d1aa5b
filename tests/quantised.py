"""Random block-quantised weights, and what they are worth in float64."""

import numpy as np
import numpy.typing as npt

from offload.spec.linear import Activations, BlockFormat, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight

Array = npt.NDArray[np.float64]


def random_weight(
    n: int,
    k: int,
    weight_format: WeightFormat,
    block: int,
    scale_dtype: npt.DTypeLike = np.float32,
    zero_points: bool = False,
) -> StoredWeight:
    """Every byte is possible, in the padding too."""
    rng = np.random.default_rng([n, k, block])
    bits = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}[weight_format]
    scales = WeightFormat.FP16 if scale_dtype == np.float16 else WeightFormat.FP32
    storage = BlockFormat(bits, block, scales, zero_points)
    arrays = [
        rng.uniform(-0.1, 0.1, spec.shape).astype(spec.dtype)
        if spec.name == "scales"
        else rng.integers(0, 256, spec.shape, np.uint8)
        for spec in storage.arrays(k, n)
    ]
    return StoredWeight(storage, k, tuple(map(StoredArray.of, arrays)))


def exact(weight: StoredWeight) -> Array:
    """W as float64 [N, K]."""
    n, bits, block = weight.out_features, weight.blocks.bits, weight.blocks.block
    codes, scales, *packed_zeros = (array.array() for array in weight.arrays)
    zeros = np.full(scales.shape, 1 << (bits - 1))
    if packed_zeros:
        zeros = _unpacked(packed_zeros[0], bits)[:, : scales.shape[1]]
    values = _unpacked(codes.reshape(n, -1), bits).reshape(*scales.shape, block)
    worth = (values - zeros[:, :, None].astype(np.float64)) * scales.astype(np.float64)[:, :, None]
    return worth.reshape(n, -1)[:, : weight.in_features]


def seen(x: npt.NDArray[np.float32], block: int, activations: Activations) -> Array:
    """x as the multiply sees it: as it is, or rounded to int8 with a scale of absmax / 127 for each block."""
    if activations is Activations.FLOAT:
        return x.astype(np.float64)
    m, k = x.shape
    padded = np.zeros((m, -(-k // block) * block), np.float32)
    padded[:, :k] = x
    blocks = padded.reshape(m, -1, block)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scales = largest / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    rounded = np.rint(blocks * inverse).astype(np.float64) * scales
    return rounded.reshape(m, -1)[:, :k]


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
