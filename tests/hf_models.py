"""Tiny random Hugging Face models, and a way to run a whole `Graph` in one onnxruntime session."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.families.registry import parse_config, tensor_shapes
from hybrid.graph.graph import ElementType, Graph

Array = npt.NDArray[Any]

SHAPES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


OF_FAMILY: dict[str, dict[str, Any]] = {
    "gemma2": {"hidden_act": ..., "sliding_window": 16},
    # For transformers: their own ones are beyond our vocabulary.
    "smollm3": {"pad_token_id": None},
    "phi3": {"pad_token_id": None},
}


def tiny_config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config.json; a change to `...` removes the key."""
    return {
        k: v
        for k, v in {"model_type": model_type, **SHAPES, **OF_FAMILY.get(model_type, {}), **changes}.items()
        if v is not ...
    }


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """float32 weights of a decoder, large enough for attention to be far from uniform."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(parse_config(config, "config.json")).items():
        spread = 0.3 if len(shape) == 2 else 0.2
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        weights[name] = (centre + spread * rng.standard_normal(shape)).astype(np.float32)
    return weights


def to_bfloat16(values: Array) -> Array:
    """float32 rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """uint16 to the float32 it stands for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(values: Array, dtype: str) -> tuple[str, Array]:
    """A safetensors type name and the array to write."""
    if dtype == "BF16":
        return dtype, to_bfloat16(values)
    return dtype, values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def rounded(values: Array, dtype: str) -> Array:
    """Give the values that the stored ones stand for, float64."""
    name, array = stored(values, dtype)
    return (from_bfloat16(array) if name == "BF16" else array).astype(np.float64)


def safetensors_bytes(tensors: Mapping[str, tuple[str, Array]], metadata: bool = True) -> bytes:
    """A safetensors file of (type name, array) pairs."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if metadata else {}
    data = b""
    for name, (dtype, array) in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(blob)],
        }
        data += blob
    return raw_safetensors(header, data)


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header, which may be bytes; padded to 8 as writers do."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    dtype: str = "F32",
    shards: int = 1,
    norm_dtype: str | None = None,
) -> Path:
    """A Hugging Face folder. `norm_dtype` is the type of everything but matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    tensors = {n: stored(w, dtype if w.ndim == 2 else norm_dtype or dtype) for n, w in weights.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        names = list(tensors)[number::shards]
        (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in names}))
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def upcast(graph: Graph) -> Graph:
    """The graph with its Linear weights in memory as float32, for onnxruntime has no matmul of mixed types.

    Other weights stay as they are stored, so Casts and Gathers of half types are run.
    """
    initializers = dict(graph.initializers)
    for node in graph.nodes:
        if node.op_type == "FusedMatMul":
            weight = initializers[node.inputs[1]]
            array = np.asarray(weight.array())
            if weight.element_type is ElementType.BFLOAT16:
                array = from_bfloat16(array)
            if weight.element_type is not ElementType.FLOAT:
                array = array.astype(np.float32)
                initializers[weight.name] = replace(weight, element_type=ElementType.FLOAT, source=array)
    return replace(graph, initializers=initializers)


def whole_session(graph: Graph) -> Any:
    """One onnxruntime session of the whole graph; weights that lie in files are read from there."""
    import onnxruntime as ort

    from hybrid.formats.onnx_graph import common_folder, serialize

    weights = graph.initializers.values()
    folder = common_folder(weights)
    model = serialize(graph.name, graph.nodes, graph.inputs, graph.outputs, weights, graph.opsets, folder)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class CachedDecoder:
    """Runs a whole graph step by step, its cache held as arrays of full length."""

    def __init__(self, graph: Graph, capacity: int) -> None:
        self.session = whole_session(graph)
        self.input_names = {info.name for info in graph.inputs}
        self.cache = {
            info.name: np.zeros([capacity if dim == "C" else dim for dim in info.shape], np.float32)
            for info in graph.inputs
            if info.name.startswith("past_key_values.")
        }
        self.length = 0

    def run(self, ids: Sequence[int], outputs: Sequence[str]) -> list[Array]:
        """The named outputs for these tokens after what is cached."""
        total = self.length + len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": np.arange(self.length, total, dtype=np.int64)[None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            **self.cache,
        }
        return list(self.session.run(outputs, {n: v for n, v in feeds.items() if n in self.input_names}))

    def step(self, ids: Sequence[int]) -> Array:
        """Logits (V,) after these tokens, which are then cached."""
        present = [name.replace("past_key_values", "present") for name in self.cache]
        logits, *cached = self.run(ids, ["logits", *present])
        self.cache = dict(zip(self.cache, cached, strict=True))
        self.length += len(ids)
        return logits[0, 0]
