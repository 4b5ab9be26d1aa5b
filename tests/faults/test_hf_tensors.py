"""Tensors and classes that a folder has besides what its config.json asks for: refused, or told, never passed over."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.families import open_huggingface
from hybrid.families.tensors.tensor_source import EMBEDDING, HEAD
from hybrid.families.tensors.tied_head import DIFFERS
from hybrid.graph.decoder import Decoder
from hybrid.graph.graph import Graph
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings
from hybrid.source.folder import find_model
from tests.hf_models import Array, random_weights, safetensors_bytes, stored, tiny_config, write_model
from tests.messages import one_line

BIAS = "model.layers.0.self_attn.q_proj.bias"
TIED = tiny_config(tie_word_embeddings=True)


def opened(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Array], allow_unused: bool = False
) -> Decoder:
    """The decoder of a folder with these weights."""
    write_model(folder, config, weights)
    return open_huggingface(find_model(folder), 64, allow_unused)


def head_of(graph: Graph) -> str:
    """The weight that the logits come from."""
    return graph.producers["logits"].inputs[1]


def test_tensors_that_are_left_over(tmp_path: Path) -> None:
    weights = random_weights(tiny_config())
    strange = {f"model.layers.0.self_attn.gate_{i}.weight": np.ones(3, np.float32) for i in range(6)}
    call: Callable[[], object] = lambda: opened(tmp_path, tiny_config(), weights | strange)  # noqa: E731
    one_line(UnsupportedModelError, call, str(tmp_path), "6 tensors", *list(strange)[:4], "2 more", "--allow-unused")
    decoder = opened(tmp_path, tiny_config(), weights | strange, allow_unused=True)
    assert len(decoder.notes) == 1
    assert all(name in decoder.notes[0] for name in [*list(strange)[:4], "6 tensors"])
    assert not strange.keys() & decoder.graph.initializers.keys()


def test_runs_and_plans_show_what_was_left_out(tmp_path: Path) -> None:
    strange = {"model.layers.0.gate.weight": np.ones(3, np.float32)}
    folder = write_model(tmp_path, tiny_config(), random_weights(tiny_config()) | strange)
    settings = RunSettings(model=folder, cuda="0", device="cpu")
    one_line(UnsupportedModelError, lambda: make_plan(settings), "model.layers.0.gate.weight")
    plan = make_plan(replace(settings, allow_unused=True))
    assert any("model.layers.0.gate.weight" in line for line in plan.warnings)


def test_a_bias_that_the_config_does_not_have(tmp_path: Path) -> None:
    weights = {**random_weights(tiny_config()), BIAS: np.ones(32, np.float32)}
    one_line(UnsupportedModelError, lambda: opened(tmp_path, tiny_config(), weights), BIAS, "1 tensor is")


def test_a_bias_that_the_file_does_not_have(tmp_path: Path) -> None:
    call: Callable[[], object] = lambda: opened(  # noqa: E731
        tmp_path, tiny_config(attention_bias=True), random_weights(tiny_config())
    )
    one_line(ModelFileError, call, BIAS)


def test_leftovers_of_older_versions_are_no_news(tmp_path: Path) -> None:
    leftovers = {
        f"model.layers.{layer}.self_attn.rotary_emb.{name}": np.ones(4, np.float32)
        for layer in range(2)
        for name in ("inv_freq", "cos_cached", "sin_cached")
    }
    assert opened(tmp_path, tiny_config(), random_weights(tiny_config()) | leftovers).notes == ()


def test_a_class_that_is_not_known(tmp_path: Path) -> None:
    config = tiny_config(architectures=["BitnetForCausalLM"], auto_map={"AutoModelForCausalLM": "m.BitnetForCausalLM"})
    weights = random_weights(config)
    call: Callable[[], object] = lambda: opened(tmp_path, config, weights)  # noqa: E731
    one_line(UnsupportedModelError, call, str(tmp_path / "config.json"), "BitnetForCausalLM", "--allow-unused")
    (note,) = opened(tmp_path, config, weights, allow_unused=True).notes
    assert "BitnetForCausalLM" in note


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_config(), random_weights(tiny_config()), shards=2)
    assert open_huggingface(find_model(tmp_path), 64).notes == ()
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    name = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][name] = shards[1]
    path.write_text(json.dumps(index))
    (note,) = open_huggingface(find_model(tmp_path), 64).notes
    assert note.startswith("1 tensor is in another file than model.safetensors.index.json says")
    assert name in note


def test_a_head_that_equals_the_embedding_is_held_once(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    decoder = opened(tmp_path, TIED, {**weights, HEAD: weights[EMBEDDING]})
    assert decoder.notes == ()
    assert head_of(decoder.graph) == EMBEDDING
    assert HEAD not in decoder.graph.initializers


@pytest.mark.parametrize("row", [0, 39])
def test_a_head_that_differs_from_the_embedding_is_used(row: int, tmp_path: Path) -> None:
    weights = random_weights(TIED)
    head = weights[EMBEDDING].copy()
    head[row, -1] += 1
    decoder = opened(tmp_path, TIED, {**weights, HEAD: head})
    assert decoder.notes == (DIFFERS,)
    assert head_of(decoder.graph) == HEAD
    assert np.array_equal(decoder.graph.initializers[HEAD].array(), head)


def test_a_head_of_another_type_is_used(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    write_model(tmp_path, TIED, weights)
    tensors = {name: stored(array, "F32") for name, array in weights.items()}
    content = safetensors_bytes({**tensors, HEAD: stored(weights[EMBEDDING], "F16")})
    (tmp_path / "model.safetensors").write_bytes(content)
    assert head_of(open_huggingface(find_model(tmp_path), 64).graph) == HEAD


def test_a_head_alone_is_the_embedding_too(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    head = weights.pop(EMBEDDING)
    decoder = opened(tmp_path, TIED, {**weights, HEAD: head})
    assert np.array_equal(decoder.graph.initializers[EMBEDDING].array(), head)


def test_a_model_saved_without_its_head_opens(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    based = {name.removeprefix("model."): array for name, array in weights.items()}
    decoder = opened(tmp_path, tiny_config(tie_word_embeddings=True, architectures=["LlamaModel"]), based)
    assert decoder.notes == ()
    for name, array in weights.items():
        assert np.array_equal(decoder.graph.initializers[name].array(), array)


def test_a_tensor_under_both_names_is_left_over(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    call: Callable[[], object] = lambda: opened(  # noqa: E731
        tmp_path, TIED, {**weights, "norm.weight": weights["model.norm.weight"] * 2}
    )
    one_line(UnsupportedModelError, call, "norm.weight", "1 tensor is")


@pytest.mark.parametrize("home", [1, 2])
def test_a_tensor_in_two_shards_is_read_where_the_index_says(home: int, tmp_path: Path) -> None:
    name = "model.norm.weight"
    weights = random_weights(TIED)
    doubled = {1: weights[name], 2: weights[name] * 3}
    write_model(tmp_path, TIED, weights, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for number, array in doubled.items():
        file = f"model-{number:05d}-of-00002.safetensors"
        own = [other for other, place in index["weight_map"].items() if place == file and other != name]
        content = {other: stored(weights[other], "F32") for other in own} | {name: stored(array, "F32")}
        (tmp_path / file).write_bytes(safetensors_bytes(content))
    index["weight_map"][name] = f"model-{home:05d}-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    graph = open_huggingface(find_model(tmp_path), 64).graph
    assert np.array_equal(graph.initializers[name].array(), doubled[home])
    del index["weight_map"][name]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    one_line(ModelFileError, lambda: open_huggingface(find_model(tmp_path), 64), name, "is also in")
