"""What gives a decoder its weights; a config alone gives their shapes."""

from typing import Protocol

from hybrid.graph.graph import ElementType, Initializer

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class TensorSource(Protocol):
    """The tensors of a model. To take one is to expect it: names and shapes are said nowhere else."""

    def take(self, name: str, shape: tuple[int, ...]) -> Initializer:
        """Give a tensor. Matrices are (out, in). Raises ModelError for one that is not there, or is not so."""

    def unused(self) -> list[str]:
        """Name the tensors that were not taken, apart from those that say nothing new."""


class ConfigTensors:
    """Tensors of a model that is a config only: of one type, and nowhere."""

    def __init__(self, dtype: ElementType) -> None:
        self.dtype = dtype

    def take(self, name: str, shape: tuple[int, ...]) -> Initializer:
        """Give a tensor without a source."""
        return Initializer(name, self.dtype, shape, None)

    def unused(self) -> list[str]:
        """Give no names."""
        return []
