"""Rotary position embeddings: the cosines and sines of every position."""

import math

import numpy as np
import numpy.typing as npt

from hybrid.families.config.rope_config import Rope, RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Radians a position turns each pair of a head, (head_dim / 2,).

    The scalings are those published with the models, as in transformers' modeling_rope_utils. "linear"
    divides all by the factor. "llama3" divides slow pairs (wavelengths of which fewer than `low_freq_factor`
    fit into the original context), keeps fast ones (more than `high_freq_factor` fit), and blends in between.
    "yarn" does the same along the numbers of the pairs, "longrope" has a factor for every pair, and "proportional"
    turns the fast ones only.
    """
    plain: npt.NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # (D/2,)
    if scaling.kind == "none":
        return plain
    if scaling.kind == "longrope":
        return plain / np.array(scaling.pair_factors, np.float64)
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "proportional":
        return np.where(np.arange(head_dim // 2) < int(scaling.rotated_share * head_dim // 2), slow, 0.0)
    if scaling.kind == "yarn":
        stretched = _stretched_share(head_dim, theta, scaling)
        return slow * stretched + plain * (1 - stretched)
    turns = scaling.original_max_positions * plain / (2 * np.pi)  # wavelengths that fit
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - share) * slow + share * plain


def _stretched_share(head_dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Give the share of each pair's frequency that YaRN divides by its factor, 0 to 1, (head_dim / 2,).

    The ramp runs from the pair that turns `beta_fast` times within the original context to the one that turns
    `beta_slow` times.
    """

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_positions / (times * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)


def rope_tables(rope: Rope, head_dim: int, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines, each (positions, head_dim / 2), float32 rounded from float64, times the attention factor."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies(head_dim, rope.theta, rope.scaling)
    factor = rope.scaling.attention_factor
    return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(np.float32)
