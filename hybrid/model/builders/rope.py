"""Rotary position embeddings: the cosines and sines of every position."""

import numpy as np
import numpy.typing as npt

from hybrid.model.hf_config import DecoderConfig, RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Radians a position turns each pair of a head, (head_dim / 2,).

    The scalings are those published with the models, as in transformers' modeling_rope_utils. "linear"
    divides all by the factor. "llama3" divides slow pairs (wavelengths of which fewer than `low_freq_factor`
    fit into the original context), keeps fast ones (more than `high_freq_factor` fit), and blends in between.
    """
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # (D/2,)
    if scaling.kind == "none":
        return plain
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_max_positions * plain / (2 * np.pi)  # wavelengths that fit
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - share) * slow + share * plain


def rope_tables(config: DecoderConfig, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines, each (positions, head_dim / 2), float32 rounded from float64."""
    per_position = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = np.arange(positions, dtype=np.float64)[:, None] * per_position
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
