"""Random block-quantised weights, and what they are worth in float64."""

import numpy as np
import numpy.typing as npt

from offload.spec.linear import Activations, WeightFormat
from offload.spec.quantised import QuantisedWeight

Array = npt.NDArray[np.float64]


def random_weight(
    n: int,
    k: int,
    weight_format: WeightFormat,
    block: int,
    scale_dtype: npt.DTypeLike = np.float32,
    zero_points: bool = False,
) -> QuantisedWeight:
    """Every byte is possible, in the padding too."""
    rng = np.random.default_rng([n, k, block])
    bits, blocks = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}[weight_format], -(-k // block)
    packed = rng.integers(0, 256, (n, blocks, block * bits // 8), np.uint8)
    scales = rng.uniform(-0.1, 0.1, (n, blocks)).astype(scale_dtype)
    zeros = rng.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8) if zero_points else None
    return QuantisedWeight(packed, scales, zeros, weight_format, k)


def exact(weight: QuantisedWeight) -> Array:
    """W as float64 [N, K]."""
    n, k = weight.shape
    zeros = np.full((n, weight.blocks), 1 << (weight.bits - 1))
    if weight.zero_points is not None:
        zeros = _unpacked(weight.zero_points, weight.bits)[:, : weight.blocks]
    values = _unpacked(weight.packed.reshape(n, -1), weight.bits).reshape(n, weight.blocks, weight.block)
    worth = (values - zeros[:, :, None].astype(np.float64)) * weight.scales.astype(np.float64)[:, :, None]
    return worth.reshape(n, -1)[:, :k]


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
