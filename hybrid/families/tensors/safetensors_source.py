"""The tensors of safetensors files, checked against what a decoder expects of them."""

import re
from collections.abc import Mapping

from hybrid.errors import ModelConfigError, ModelFileError, UnsupportedModelError
from hybrid.families.tensors.tensor_source import HEAD
from hybrid.formats.safetensors import StoredTensor
from hybrid.graph.graph import ElementType, Initializer
from hybrid.shown import show

_BASE = "model."
_OF_BASE = re.compile(r"(embed_tokens|layers|norm)\.")
_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
# GPTQ, AWQ, bitsandbytes, compressed-tensors, fp8 and MLX, in this order.
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state.*|weight_packed|weight_scale(_inv)?|weight_zero_point"
    r"|input_scale|weight_shape|scales)$"
)
_INSTEAD = "use the original float checkpoint, or an ONNX export with int4 or int8 weights"
# What older versions of transformers saved beside the weights, and can be worked out.
_LEFTOVER = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$")
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")


class SafetensorsSource:
    """Tensors by their names in the files, or by those that `with_usual_names` gives them."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raises UnsupportedModelError for quantised weights and adapters."""
        _refuse_quantised(tensors)
        self._tensors = tensors
        self._taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> Initializer:
        """Give a tensor where it lies.

        Raises ModelFileError for one that is not there, ModelConfigError for one whose shape contradicts the config,
        UnsupportedModelError for one that is not of floats.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            asked = f"config.json asks for one of {list(shape)}"
            raise ModelFileError(f"{self._files()}: tensor {name} is missing, {asked}")
        where = f"{show(tensor.source.path)}: tensor {name}"
        if tensor.dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{where} is {tensor.dtype.name}, must be FLOAT, FLOAT16 or BFLOAT16; {_INSTEAD}"
            )
        if tensor.shape != shape:
            raise ModelConfigError(f"{where} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
        self._taken.add(name)
        return Initializer(name, tensor.dtype, shape, tensor.source)

    def unused(self) -> list[str]:
        """Name the tensors that were not taken, apart from those that say nothing new."""
        # A head that is still here and not taken equals the embedding: see `tied_head`.
        return [name for name in self._tensors if name not in {*self._taken, HEAD} and not _LEFTOVER.search(name)]

    def _files(self) -> str:
        files = sorted({tensor.source.path for tensor in self._tensors.values()})
        return f"{show(files[0])} and {len(files) - 1} more" if files[1:] else show(files[0])


def with_usual_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give the tensors by the names that a model with a head has; one saved without its head lacks the first part.

    As in transformers, each tensor for itself.
    """

    def usual(name: str) -> str:
        based = f"{_BASE}{name}"
        return based if _OF_BASE.match(name) and based not in tensors else name

    return {usual(name): tensor for name, tensor in tensors.items()}


def _refuse_quantised(tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if _QUANTISED.search(name):
            raise UnsupportedModelError(
                f"{show(tensor.source.path)}: tensor {show(name)} is part of quantised weights; {_INSTEAD}"
            )
        if _ADAPTER.search(name):
            raise UnsupportedModelError(
                f"{show(tensor.source.path)}: tensor {show(name)} is part of a LoRA adapter;"
                " merge it into its base model first"
            )
