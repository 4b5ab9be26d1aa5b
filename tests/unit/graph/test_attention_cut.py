"""Attentions outside: which ones are found, the levels and Casts around them, and the type of their cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import UsageError
from hybrid.families import open_huggingface
from hybrid.graph.attention import Attention, find_attentions
from hybrid.graph.cache_shape import cache_bytes, cache_types, with_cache_type
from hybrid.graph.cut import cut
from hybrid.graph.decoder import CachePair, Decoder
from hybrid.graph.find import find_linears
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.source.folder import find_model
from offload.spec.attention import AttentionSpec
from tests.hf_models import tiny_config, write_model
from tests.unit.graph.test_cut import check_order

FP32, FP16, INT32 = ElementType.FLOAT, ElementType.FLOAT16, ElementType.INT32
CACHE = tuple(CachePair(f"past_{part}", f"present_{part}") for part in ("k", "v"))


def attention_graph(kind: ElementType = FP32, **attributes: Any) -> Graph:
    """Linears q, k, v of x (8 wide), attention of 4 heads over 2 of 4, Linear o."""
    weights = {"w": (kind, (8, 16)), "wk": (kind, (8, 8)), "wo": (kind, (16, 8)), "cos": (FP32, (64, 2))}
    named = {name: Initializer(name, t, shape, None) for name, (t, shape) in weights.items()}
    attention = Node(
        "GroupQueryAttention",
        ("q", "k", "v", "past_k", "past_v", "last", "total", "cos", "cos"),
        ("a", "present_k", "present_v"),
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, **attributes},
        "com.microsoft",
        name="attention",
    )
    nodes = (
        Node("Neg", ("x",), ("h",), name="h"),
        *(Node("MatMul", ("h", "w" if name == "q" else "wk"), (name,), name=name) for name in "qkv"),
        attention,
        Node("MatMul", ("a", "wo"), ("o",), name="o"),
        Node("Add", ("o", "x"), ("z",), name="z"),
    )
    past = (1, 2, "C", 4)
    inputs = (
        TensorInfo("x", kind, (1, "S", 8)),
        TensorInfo("last", INT32, (1,)),
        TensorInfo("total", INT32, ()),
        TensorInfo("past_k", kind, past),
        TensorInfo("past_v", kind, past),
    )
    outputs = (TensorInfo("z", kind, None), *(TensorInfo(pair.present, kind, past) for pair in CACHE))
    types = {name: kind for node in nodes for name in node.outputs} | {info.name: info.element_type for info in inputs}
    shapes = {info.name: info.shape for info in inputs} | {"h": (1, "S", 8)}
    types |= {name: weight.element_type for name, weight in named.items()}
    return Graph("g", nodes, inputs, outputs, named, {"": 21}, types, shapes)


def found(graph: Graph, context_tokens: int = 64) -> tuple[Attention, ...]:
    return find_attentions(graph, CACHE, context_tokens)


def changed(graph: Graph, **changes: Any) -> Graph:
    """The graph with another attention node."""
    return replace(graph, nodes=tuple(replace(n, **changes) if n.name == "attention" else n for n in graph.nodes))


def test_what_an_attention_computes() -> None:
    (plain,) = found(attention_graph())
    assert plain.spec == AttentionSpec(4, 2, 4, 0.5, rotary_dim=4)
    attributes = {"scale": 0.25, "softcap": 20.0, "local_window_size": 7, "rotary_interleaved": 1, "smooth_softmax": 0}
    (full,) = found(attention_graph(**attributes))
    assert full.spec == AttentionSpec(4, 2, 4, 0.25, 20.0, 7, 4, True)
    (unturned,) = found(attention_graph(do_rotary=0, local_window_size=-1))
    assert (unturned.spec.rotary_dim, unturned.spec.window, unturned.cos) == (0, None, "")


@pytest.mark.parametrize("kind", [FP32, FP16])
def test_an_attention_is_a_level_of_its_own(kind: ElementType) -> None:
    """Half tensors that only outside operators exchange stay float32: no island stands between them."""
    graph = attention_graph(kind)
    program = cut(graph, find_linears(graph), found(graph))
    check_order(program)
    levels = [
        ([n.op_type for n in level.island.nodes] if level.island else [], [li.name for li in level.linears])
        for level in program.levels
    ]
    cast = [] if kind is FP32 else ["Cast"]
    assert levels == [(["Neg", *cast], ["q", "k", "v"]), ([], []), ([], ["o"]), ([*cast, "Add"], [])]
    (attention,) = program.levels[1].attentions
    assert [program.element_type(name) for name in (*attention.inputs, attention.output)] == [FP32] * 3 + [INT32, FP32]
    assert program.shape(attention.output) == (1, "S", 16)
    assert program.last_use[attention.query] == program.last_use["last"] == 1


def test_an_attention_that_is_not_asked_for_stays_in_its_island() -> None:
    graph = attention_graph()
    program = cut(graph, find_linears(graph))
    assert not any(level.attentions for level in program.levels)
    assert "GroupQueryAttention" in [n.op_type for n in program.levels[1].island.nodes]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "attributes",
    [
        {"smooth_softmax": 1},
        {"qk_output": 1},
        {"kv_cache_bit_width": 8},
        {"of_a_later_version": 1},
        {"kv_num_heads": 3},
    ],
)
def test_attributes_we_do_not_serve(attributes: dict[str, Any]) -> None:
    assert found(attention_graph(**attributes)) == ()


def test_shapes_and_tensors_we_do_not_serve() -> None:
    graph = attention_graph()
    node = graph.producers["a"]
    assert found(changed(graph, inputs=(*node.inputs, "", "", ""))) != ()  # as exporters write what is not given
    for extra in ("positions", "bias", "sink"):
        assert found(changed(graph, inputs=(*node.inputs, "", extra))) == ()
    assert found(changed(graph, outputs=(*node.outputs, "scores"))) == ()
    assert found(changed(graph, inputs=("q", "k", "", *node.inputs[3:]))) == ()
    assert found(changed(graph, inputs=(*node.inputs[:7], "elsewhere", "cos"))) == ()
    assert found(changed(graph, inputs=("q", "k", "v", "past_v", "past_k", *node.inputs[5:]))) == ()
    assert found(changed(graph, domain="")) == ()
    assert found(graph, context_tokens=65) == ()  # the tables end before
    assert find_attentions(graph, (), 64) == ()  # a cache that grows
    other = Node("Neg", ("present_k",), ("n",), name="n")
    assert found(replace(graph, nodes=(*graph.nodes, other))) == ()
    assert found(replace(graph, types={**graph.types, "past_v": FP16})) == ()
    assert found(replace(graph, types={**graph.types, "past_k": ElementType.INT8, "past_v": ElementType.INT8})) == ()
    assert found(replace(graph, types={**graph.types, "last": ElementType.INT64})) == ()
    assert found(replace(graph, shapes={**graph.shapes, "past_k": (2, 2, "C", 4)})) == ()
    assert found(replace(graph, initializers={k: v for k, v in graph.initializers.items() if k != "cos"})) == ()


def test_packed_heads_are_one_tensor() -> None:
    graph = attention_graph()
    (attention,) = found(changed(graph, inputs=("q", "", "", *graph.producers["a"].inputs[3:])))
    assert (attention.query, attention.key, attention.value) == ("q", "", "")


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("head_dim", [8, 16])
def test_attentions_of_a_folder_leave_their_islands(model_type: str, head_dim: int, tmp_path: Path) -> None:
    write_model(tmp_path, tiny_config(model_type, head_dim=head_dim), {})
    (tmp_path / "model.safetensors").unlink()
    decoder = open_huggingface(find_model(tmp_path), 64)
    attentions = find_attentions(decoder.graph, decoder.cache, 64)
    program = cut(decoder.graph, find_linears(decoder.graph), attentions)
    check_order(program)
    assert sum(len(level.attentions) for level in program.levels) == 2
    between = program.levels[1].island  # rotates where the heads are small, and norms in Qwen3
    assert (between is None) == (model_type == "llama" and head_dim == 16)


def test_the_type_of_a_cache() -> None:
    fp32, fp16 = (open_for_run(RunSettings(DEMO_MODEL, kv_dtype=kind)) for kind in ("fp32", "fp16"))
    sizes = [cache_bytes(opened.decoder.graph, opened.decoder.cache, 100) for opened in (fp32, fp16)]
    assert sizes[0] == 2 * sizes[1]
    plans = [make_plan(RunSettings(DEMO_MODEL, cuda="0", kv_dtype=kind)) for kind in ("fp32", "fp16")]
    assert plans[0].ram_bytes["kv cache"] == 2 * plans[1].ram_bytes["kv cache"]
    assert cache_types(fp16.decoder) == {"fp16"}


def test_a_cache_that_onnxruntime_reads_keeps_its_type() -> None:
    graph = attention_graph(smooth_softmax=1)
    decoder = Decoder("g", Path(), graph, "onnx", 40, 64, (), None, CACHE, shared_cache=True)
    with pytest.raises(UsageError, match=r"--kv-dtype fp16: g keeps its cache in fp32.*past_k.*leave --kv-dtype out"):
        with_cache_type(decoder, "fp16", ())
    with pytest.raises(UsageError, match="int8: must be fp16 or fp32"):
        with_cache_type(decoder, "int8", ("past_k", "past_v"))
