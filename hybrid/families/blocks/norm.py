"""RMS norms, and the residual stream that they read."""

import numpy as np

from hybrid.families.blocks.writer import MICROSOFT, GraphWriter
from hybrid.families.config.decoder_config import DecoderConfig


def rms_norm(write: GraphWriter, config: DecoderConfig, name: str, source: str) -> str:
    """Write an RMS norm over the last axis."""
    # Not an operator of ONNX, but onnxruntime knows it in the default domain, as genai exports use it.
    return write.node(
        "SimplifiedLayerNormalization",
        (source, _gamma(write, config, name, source)),
        name,
        write.shapes[source],
        axis=-1,
        epsilon=config.rms_norm_eps,
        stash_type=1,
    )


class Residual:
    """The sum that every block reads, and adds to; an addition and the norm after it are one operator."""

    def __init__(self, write: GraphWriter, config: DecoderConfig, start: str) -> None:
        self._write, self._config = write, config
        self._sum, self._branch = start, ""  # (1, S, H); the sum still lacks the branch

    def add(self, branch: str) -> None:
        """Add what a block computed, (1, S, H)."""
        self._branch = self._write.scaled(f"{branch}.scaled", branch, self._config.residual_multiplier)

    def total(self, name: str) -> str:
        """Write the sum as it is, (1, S, H); straight after the embedding there is nothing to write."""
        if self._branch:
            self._sum = self._write.node("Add", (self._sum, self._branch), name, self._write.shapes[self._sum])
            self._branch = ""
        return self._sum

    def norm(self, name: str, last: bool = False) -> str:
        """Write an RMS norm of the sum; after the `last` nothing reads the sum."""
        write = self._write
        if not self._branch:  # the first norm, straight after the embedding
            return rms_norm(write, self._config, name, self._sum)
        shape, total = write.shapes[self._sum], "" if last else f"{name}.sum"
        write.node(
            "SkipSimplifiedLayerNormalization",
            (self._sum, self._branch, _gamma(write, self._config, name, self._sum)),
            name,
            shape,
            more_outputs=None if last else {"-mean": (), "-inv_std_var": (), total: shape},
            domain=MICROSOFT,
            epsilon=self._config.rms_norm_eps,
        )
        self._sum, self._branch = total, ""
        return name


def _gamma(write: GraphWriter, config: DecoderConfig, name: str, source: str) -> str:
    width = write.width(source)
    weight = write.as_float(write.weight(f"{name}.weight", (width,)))
    if not config.norm_offset:
        return weight
    offset = write.constant("norm_offset", np.array(config.norm_offset, np.float32))
    return write.node("Add", (weight, offset), f"{name}.gamma", (width,))
