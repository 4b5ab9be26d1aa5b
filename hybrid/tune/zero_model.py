"""A decoder whose weights are all zero, to time steps with: a sparse file takes no disk, and zeros multiply as fast."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hybrid.families.registry import parse_config, tensor_shapes


@dataclass(frozen=True)
class ZeroShape:
    """Sizes of a Llama decoder in fp16; four query heads share a key/value head, as in most models today."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    positions: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of the weights of one layer."""
        return 2 * self.hidden * (self.hidden * 5 // 2 + 3 * self.intermediate)

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "model_type": "llama",
            "torch_dtype": "float16",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 4,
            "vocab_size": 8192,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def write_zero_model(folder: Path, shape: ZeroShape) -> Path:
    """Write the Hugging Face folder of a model; gives `folder`, which is made."""
    folder.mkdir(parents=True)
    config = shape.config()
    tensors: dict[str, Any] = {}
    end = 0
    for name, tensor_shape in tensor_shapes(parse_config(config, "config.json")).items():
        begin, end = end, end + 2 * prod(tensor_shape)
        tensors[name] = {"dtype": "F16", "shape": list(tensor_shape), "data_offsets": [begin, end]}
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
