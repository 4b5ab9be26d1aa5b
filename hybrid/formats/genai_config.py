"""Read genai_config.json, which onnxruntime-genai keeps beside its models: sizes, ends of text, names of tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.errors import ModelConfigError
from hybrid.graph.step_feeds import FEEDS
from hybrid.shown import show

_MAX_SIZE = 1 << 31
# Its keys for names of tensors, and our names for those that are numbered by layer.
_NUMBERED = {
    "past_key_names": "past_key_values.{}.key",
    "past_value_names": "past_key_values.{}.value",
    "past_names": "past_{}",
    "present_key_names": "present.{}.key",
    "present_value_names": "present.{}.value",
    "present_names": "present_{}",
}


@dataclass(frozen=True)
class GenaiConfig:
    """The contents of genai_config.json that matter; 0 and empty for what it does not say."""

    head_size: int = 0
    num_key_value_heads: int = 0
    context_length: int = 0
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # the name of a tensor by its key, "past_%d.key" if numbered

    def renames(self, tensors: Sequence[str]) -> dict[str, str]:
        """The inputs and outputs among `tensors` that have other names than ours, each with ours."""
        found: dict[str, str] = {}
        for key, name in self.names.items():
            pattern = re.compile(
                re.escape(name).replace("%d", r"(\d{1,9})", 1) if key in _NUMBERED else re.escape(name)
            )
            matches = (pattern.fullmatch(tensor) for tensor in tensors)
            for match in filter(None, matches):
                found[match[0]] = _NUMBERED[key].format(match[1]) if key in _NUMBERED else key
        return {name: ours for name, ours in found.items() if name != ours}


def parse_genai_config(content: Mapping[str, Any] | None, path: Path) -> GenaiConfig:
    """Take what we use out of the file's content. Raises ModelConfigError with the key and the value."""
    if content is None:
        return GenaiConfig()
    model = _section(content, "model", path)
    decoder = _section(model, "decoder", path)
    names = {**_section(decoder, "inputs", path), **_section(decoder, "outputs", path)}
    ends = model.get("eos_token_id")
    return GenaiConfig(
        head_size=_size(decoder, "head_size", path),
        num_key_value_heads=_size(decoder, "num_key_value_heads", path),
        context_length=_size(model, "context_length", path),
        vocab_size=_size(model, "vocab_size", path),
        eos_token_ids=tuple(
            _id(end, "eos_token_id", path)
            for end in (ends if isinstance(ends, list) else [ends])[:1000]
            if end is not None
        ),
        bos_token_id=None if model.get("bos_token_id") is None else _id(model["bos_token_id"], "bos_token_id", path),
        names={key: name for key, name in names.items() if _is_name(key, name)},
    )


def _is_name(key: str, name: Any) -> bool:
    if not isinstance(name, str):
        return False
    return name.count("%d") == 1 if key in _NUMBERED else key == "logits" or key in FEEDS


def _section(content: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise ModelConfigError(f"{path}: {key} is {show(value)}, must be an object")
    return value


def _size(content: Mapping[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_SIZE:
        raise ModelConfigError(f"{path}: {key} is {show(value)}, must be a whole number above 0")
    return value


def _id(value: Any, key: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_SIZE:
        raise ModelConfigError(f"{path}: {key} is {show(value)}, must be a token id")
    return value
