"""A numpy Llama for small models: slow, plain, and at any float width, to check other runtimes against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file, at its stored width (F16 and F32 only)."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    types = {"F16": np.float16, "F32": np.float32}
    tensors: dict[str, Array] = {}
    for name, info in header.items():
        if name != "__metadata__":
            first, last = info["data_offsets"]
            flat = np.frombuffer(raw[start + first : start + last], types[info["dtype"]])
            tensors[name] = flat.reshape(info["shape"])
    return tensors


class Reference:
    """One sequence of a Llama model folder, run a few tokens at a time with its keys and values kept."""

    def __init__(self, folder: Path, dtype: type = np.float64) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        stored = read_safetensors(folder / "model.safetensors")
        self.weights: dict[str, Array] = {name: weight.astype(dtype) for name, weight in stored.items()}
        self.dtype = dtype
        self.reset()

    def reset(self) -> None:
        """Forget the sequence so far."""
        layers, heads = self.config["num_hidden_layers"], self.config["num_key_value_heads"]
        empty = np.zeros((heads, 0, self.config["head_dim"]), self.dtype)
        self.keys, self.values = [empty] * layers, [empty] * layers

    def step(self, ids: list[int]) -> Array:
        """Append the ids [n] to the sequence; the logits [vocab] that follow the last of them."""
        past = self.keys[0].shape[1]
        cos, sin = self._rotary(past, len(ids))
        # A query at position p sees the keys at positions 0..p.
        hidden = np.arange(past + len(ids)) > np.arange(past, past + len(ids))[:, None]
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.config["num_hidden_layers"]):
            x = x + self._attention(i, self._norm(x, f"layers.{i}.input_layernorm"), cos, sin, hidden)
            x = x + self._mlp(i, self._norm(x, f"layers.{i}.post_attention_layernorm"))
        output = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        logits: Array = output @ self._norm(x[-1], "norm")
        return logits

    def _norm(self, x: Array, name: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        weight = self.weights[f"model.{name}.weight"]
        scaled: Array = x / np.sqrt(mean_square + self.config["rms_norm_eps"]) * weight
        return scaled

    def _rotary(self, past: int, count: int) -> tuple[Array, Array]:
        dim = self.config["head_dim"]
        step = self.config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        angle = np.outer(np.arange(past, past + count), step)
        angle = np.concatenate((angle, angle), axis=-1)
        return np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)

    def _heads(self, x: Array, i: int, name: str) -> Array:
        """Project [n, hidden] to [heads, n, head_dim]."""
        y: Array = x @ self.weights[f"model.layers.{i}.self_attn.{name}.weight"].T
        return y.reshape(len(x), -1, self.config["head_dim"]).transpose(1, 0, 2)

    def _attention(self, i: int, x: Array, cos: Array, sin: Array, hidden: Array) -> Array:
        def rotate(y: Array) -> Array:
            low, high = np.split(y, 2, axis=-1)
            turned: Array = y * cos + np.concatenate((-high, low), axis=-1) * sin
            return turned

        self.keys[i] = np.concatenate((self.keys[i], rotate(self._heads(x, i, "k_proj"))), axis=1)
        self.values[i] = np.concatenate((self.values[i], self._heads(x, i, "v_proj")), axis=1)
        query = rotate(self._heads(x, i, "q_proj"))
        group = len(query) // len(self.keys[i])
        keys, values = np.repeat(self.keys[i], group, axis=0), np.repeat(self.values[i], group, axis=0)
        scores = query @ keys.transpose(0, 2, 1) / np.sqrt(self.config["head_dim"]).astype(self.dtype)
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = (weights @ values).transpose(1, 0, 2).reshape(len(x), -1)
        result: Array = out @ self.weights[f"model.layers.{i}.self_attn.o_proj.weight"].T
        return result

    def _mlp(self, i: int, x: Array) -> Array:
        gate, up, down = (
            self.weights[f"model.layers.{i}.mlp.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")
        )
        g = x @ gate.T
        result: Array = (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T
        return result
