"""Every key of config.json is read, harmless, or refused unless it is neutral."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelError, UnsupportedModelError
from hybrid.families.config.keys import HARMLESS, NEUTRAL, READ
from hybrid.families.registry import FAMILIES, parse_config
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
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
OF_FAMILY: dict[str, dict[str, Any]] = {"phi3": {"rope_scaling": LONGROPE}}
# Attributes of transformers' configs that are no keys of config.json.
METHODS = {"get_text_config", "standardize_rope_params", "is_heterogeneous", "to_dict", "default_theta"}
CLASSES = {
    "llama": [("llama", "LlamaConfig")],
    "mistral": [("mistral", "MistralConfig"), ("ministral", "MinistralConfig")],  # the second for layer_types
    "qwen2": [("qwen2", "Qwen2Config")],
    "qwen3": [("qwen3", "Qwen3Config")],
    "granite": [("granite", "GraniteConfig")],
    "gemma": [("gemma", "GemmaConfig")],
    "smollm3": [("smollm3", "SmolLM3Config")],
    "phi3": [("phi3", "Phi3Config")],
    "olmo2": [("olmo2", "Olmo2Config")],
    "seed_oss": [("seed_oss", "SeedOssConfig")],
    "arcee": [("arcee", "ArceeConfig")],
    "ernie4_5": [("ernie4_5", "Ernie4_5Config")],
    "gemma2": [("gemma2", "Gemma2Config")],
}


def is_known(family: str, key: str) -> bool:
    """Check that the key is read, harmless, or refused unless it is neutral."""
    return key in READ | FAMILIES[family].keys | HARMLESS or key in NEUTRAL or key.startswith("_")


@pytest.fixture(scope="module")
def transformers() -> Path:
    """The folder of the package. Its files are read and not imported, which would import torch."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        pytest.skip("transformers is not installed")
    return Path(found.origin).parent


def definition(file: Path, name: str) -> ast.ClassDef | ast.FunctionDef:
    nodes = ast.parse(file.read_text()).body
    return next(node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)


def fields(config_class: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """The fields of a dataclass."""
    return [
        node.target.id
        for node in config_class.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "ClassVar" not in ast.dump(node)
    ]


def rope_functions(file: Path) -> Iterator[str]:
    """The sources of ROPE_INIT_FUNCTIONS."""
    text = file.read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and re.fullmatch(r"_compute_\w+_parameters", node.name):
            yield ast.get_source_segment(text, node) or ""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_config_classes_is_known(transformers: Path, family: str) -> None:
    every_class_has = fields(definition(transformers / "configuration_utils.py", "PreTrainedConfig"))
    for module, name in CLASSES[family]:
        file = transformers / "models" / module / f"configuration_{module}.py"
        keys = [*every_class_has, *fields(definition(file, name))]
        assert len(keys) > 20
        assert {"hidden_size", "architectures"} <= {*keys}
        assert [key for key in keys if not is_known(family, key)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_the_reference_implementation_reads_is_known(transformers: Path, family: str) -> None:
    """Those that its model, its masks, its rotary positions and its cache ask a config for."""
    modelling = transformers / "models" / family / f"modeling_{family}.py"
    sources = [modelling.read_text(), (transformers / "masking_utils.py").read_text()]
    sources += rope_functions(transformers / "modeling_rope_utils.py")
    sources.append(ast.unparse(definition(transformers / "cache_utils.py", "get_layer_types_and_kwargs")))
    read = set()
    for source in sources:
        read.update(re.findall(r"\bconfig\.([a-z_]\w*)", source))
        read.update(re.findall(r"getattr\(\s*(?:self\.)?\w*config,\s*['\"](\w+)['\"]", source))
    assert {"hidden_size", "is_causal", "rope_parameters", "kv_sharing_modes"} <= read
    # num_labels and the like belong to heads that are refused by their class.
    assert sorted(key for key in read - METHODS if not is_known(family, key)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_read_is_read(family: str) -> None:
    for key in sorted((READ | FAMILIES[family].keys) - {"architectures"}):
        config = tiny_config(family, **EVERYTHING | OF_FAMILY.get(family, {})) | {key: IMPOSSIBLE}
        with pytest.raises(ModelError, match=key):
            parse_config(config, "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_change_the_result_is_refused(family: str) -> None:
    for key in NEUTRAL.keys() - FAMILIES[family].keys:
        with pytest.raises(UnsupportedModelError, match=key):
            parse_config(tiny_config(family) | {key: IMPOSSIBLE}, "config.json")
        for value in NEUTRAL[key]:
            assert parse_config(tiny_config(family) | {key: value}, "config.json").notes == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_harmless_is_passed_over(family: str) -> None:
    harmless: dict[str, Any] = dict.fromkeys(HARMLESS, 7)
    plain = parse_config(tiny_config(family), "config.json")
    assert parse_config(tiny_config(family) | harmless, "config.json") == plain
    assert not HARMLESS & (READ | FAMILIES[family].keys | NEUTRAL.keys())
