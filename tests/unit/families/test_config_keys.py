"""What becomes of every key of config.json: read, harmless, or refused unless it is neutral."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest

from hybrid.errors import ModelError, UnsupportedModelError
from hybrid.families.config import FAMILIES, parse_config
from hybrid.families.config_keys import HARMLESS, NEUTRAL, READ, READ_OF
from tests.hf_models import tiny_config

IMPOSSIBLE = {"not": {"a": "value"}}
YARN = {"rope_type": "yarn", "factor": 2.0}
# Where every key that is read has an effect; a window as long as any context is one that Llama may have.
EVERYTHING = {
    "rope_theta": ...,
    "rope_scaling": YARN,
    "use_sliding_window": True,
    "sliding_window": 128,
    "max_window_layers": 0,
}
# Attributes of transformers' configs that are no keys of config.json.
METHODS = {"get_text_config", "standardize_rope_params", "is_heterogeneous", "to_dict", "default_theta"}
CLASSES = {
    "llama": ["LlamaConfig"],
    "mistral": ["MistralConfig", "MinistralConfig"],  # the second when there are layer_types
    "qwen2": ["Qwen2Config"],
    "qwen3": ["Qwen3Config"],
}


def is_known(family: str, key: str) -> bool:
    """Whether the key is read, harmless, or refused unless it is neutral."""
    return key in READ | READ_OF[family] | HARMLESS or key in NEUTRAL or key.startswith("_")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_config_classes_is_known(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    for name in CLASSES[family]:
        keys = [field.name for field in dataclasses.fields(getattr(transformers, name))]
        assert len(keys) > 20
        assert [key for key in keys if not is_known(family, key)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_the_reference_implementation_reads_is_known(family: str) -> None:
    """Those that its model, its masks, its rotary positions and its cache ask a config for."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    names = [f"models.{family}.modeling_{family}", "masking_utils"]
    sources = [inspect.getsource(importlib.import_module(f"transformers.{name}")) for name in names]
    rope = importlib.import_module("transformers.modeling_rope_utils")
    cache = importlib.import_module("transformers.cache_utils")
    sources += [inspect.getsource(function) for function in rope.ROPE_INIT_FUNCTIONS.values()]
    sources.append(inspect.getsource(cache.get_layer_types_and_kwargs))
    read = set()
    for source in sources:
        read.update(re.findall(r"\bconfig\.([a-z_]\w*)", source))
        read.update(re.findall(r"getattr\(\s*(?:self\.)?\w*config,\s*\"(\w+)\"", source))
    assert {"hidden_size", "is_causal", "rope_parameters", "kv_sharing_modes"} <= read
    # num_labels and the like belong to heads that are refused by their class.
    assert sorted(key for key in read - METHODS if not is_known(family, key)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_read_is_read(family: str) -> None:
    for key in sorted((READ | READ_OF[family]) - {"architectures"}):
        config = tiny_config(family, **EVERYTHING) | {key: IMPOSSIBLE}
        with pytest.raises(ModelError, match=key):
            parse_config(config, "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_change_the_result_is_refused(family: str) -> None:
    for key in NEUTRAL.keys() - READ_OF[family]:
        with pytest.raises(UnsupportedModelError, match=key):
            parse_config(tiny_config(family) | {key: IMPOSSIBLE}, "config.json")
        for value in NEUTRAL[key]:
            assert parse_config(tiny_config(family) | {key: value}, "config.json").notes == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_harmless_is_passed_over(family: str) -> None:
    harmless: dict[str, Any] = dict.fromkeys(HARMLESS, 7)
    plain = parse_config(tiny_config(family), "config.json")
    assert parse_config(tiny_config(family) | harmless, "config.json") == plain
    assert not HARMLESS & (READ | READ_OF[family] | NEUTRAL.keys())
