"""Graphs built from configs and safetensors; what they compute is in parity/test_hf_builder.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.errors import UsageError
from hybrid.families import open_huggingface
from hybrid.families.registry import FAMILIES, build, parse_config
from hybrid.families.tensors.tensor_source import ConfigTensors
from hybrid.graph.canonical import canonical
from hybrid.graph.cut import cut
from hybrid.graph.decoder import CachePair
from hybrid.graph.graph import ElementType, Graph, TensorInfo
from hybrid.source.folder import find_model
from offload.storage.weight_file import FileRange
from tests.hf_models import random_weights, tiny_config, write_model


def built(config: dict[str, Any], context_tokens: int = 64) -> Graph:
    """The graph of a config alone."""
    decoder = parse_config(config, "c")
    return build(decoder, ConfigTensors(decoder.dtype), context_tokens, "tiny")


def test_the_contract_of_inputs_and_outputs() -> None:
    graph = built(tiny_config(head_dim=16))
    cache = (1, 2, "C", 16)
    past = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert graph.inputs == (
        TensorInfo("input_ids", ElementType.INT64, (1, "S")),
        TensorInfo("seqlens_k", ElementType.INT32, (1,)),
        TensorInfo("total_sequence_length", ElementType.INT32, ()),
        *(TensorInfo(name, ElementType.FLOAT, cache) for name in past),
    )
    assert graph.outputs == (
        TensorInfo("logits", ElementType.FLOAT, (1, 1, 40)),
        *(TensorInfo(n.replace("past_key_values", "present"), ElementType.FLOAT, cache) for n in past),
    )
    assert graph.opsets == {"": 21, "com.microsoft": 1}


def test_small_heads_rotate_apart_and_take_positions() -> None:
    graph = built(tiny_config())
    assert graph.inputs[1] == TensorInfo("position_ids", ElementType.INT64, (1, "S"))
    attention = [node for node in graph.nodes if node.op_type == "GroupQueryAttention"]
    assert [node.attributes["do_rotary"] for node in attention] == [0, 0]


PROJECTIONS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "arcee": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("head_dim", [8, 16])
def test_graphs_are_whole(model_type: str, head_dim: int) -> None:
    graph = built(tiny_config(model_type, head_dim=head_dim))
    known = {info.name for info in graph.inputs} | set(graph.initializers)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    for node in graph.nodes:  # in topological order, each tensor written once
        assert known.issuperset(node.reads), node.name
        written = {name for name in node.outputs if name}
        assert not written & known
        known |= written
    assert known == set(graph.types) == set(graph.shapes)
    read = {name for node in graph.nodes for name in node.reads}
    assert set(graph.initializers) <= read, "an initializer that nothing reads"
    linears = [node for node in graph.nodes if node.op_type == "FusedMatMul"]
    projections = PROJECTIONS.get(model_type, PROJECTIONS["llama"])
    assert [node.name.rpartition(".")[2] for node in linears] == [*projections, *projections, "lm_head"]
    assert all(graph.types[node.outputs[0]] is ElementType.FLOAT for node in linears)


def test_linears_and_attentions_say_what_they_are() -> None:
    graph = built(tiny_config(attention_bias=True))
    said = [(node.kind, node.layer) for node in graph.nodes if node.kind]
    kinds = ["q_proj", "k_proj", "v_proj", "attention", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert said == [(kind, layer) for layer in range(2) for kind in kinds] + [("lm_head", None)]
    island = cut(graph, ()).levels[0].island
    assert island is not None
    kept = [(node.kind, node.layer) for node in canonical(island).island.nodes if node.kind]
    assert sorted(map(str, kept)) == sorted(map(str, said))


def test_a_config_alone_gives_weights_without_a_source() -> None:
    graph = built(tiny_config(torch_dtype="bfloat16"))
    head = graph.initializers["lm_head.weight"]
    assert (head.element_type, head.shape, head.source) == (ElementType.BFLOAT16, (40, 32), None)


def test_a_tied_head_reads_the_embedding() -> None:
    graph = built(tiny_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in graph.initializers
    assert [node.op_type for node in graph.consumers["model.embed_tokens.weight"]] == [
        "Gather",
        "FusedMatMul",
    ]


def test_opening_points_into_the_files(tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    decoder = open_huggingface(find_model(write_model(tmp_path, config, weights, "F16", shards=2)), 48)
    for name, initializer in decoder.graph.initializers.items():
        if name in weights:
            assert isinstance(initializer.source, FileRange)
            assert np.array_equal(initializer.array(), weights[name].astype(np.float16))
    assert (decoder.architecture, decoder.vocab_size, decoder.context_limit) == ("llama", 40, 64)
    assert (decoder.bos_token_id, decoder.eos_token_ids, decoder.shared_cache) == (1, (2,), True)
    assert decoder.cache[1] == CachePair("past_key_values.0.value", "present.0.value")
    assert decoder.notes == ()
    assert decoder.graph.shapes["rope.cos"] == (48, 4)


def test_contexts_are_cut_to_what_the_model_was_made_for(tmp_path: Path) -> None:
    decoder = open_huggingface(find_model(write_model(tmp_path, tiny_config(), random_weights(tiny_config()))), 1000)
    assert decoder.graph.shapes["rope.sin"] == (64, 4)
    assert decoder.notes == ()


def test_a_config_alone_opens(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_config(), {})
    (tmp_path / "model.safetensors").unlink()
    decoder = open_huggingface(find_model(tmp_path), 48)
    assert decoder.graph.initializers["model.norm.weight"].source is None


def test_contexts_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="context is 0 tokens"):
        built(tiny_config(), context_tokens=0)


def test_odd_sizes_of_heads_are_padded_in_the_cache() -> None:
    graph = built(tiny_config(head_dim=20))
    assert graph.shapes["present.0.key"] == (1, 2, "C", 24)
    assert graph.shapes["model.layers.0.self_attn.q_proj"] == (1, "S", 80)
