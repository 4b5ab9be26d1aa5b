"""Control flow in ONNX decoders: branches that are decided when a model is opened, and those that are not."""

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_node

from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import RunSettings
from tests.onnx_decoders import (
    HEAD_DIM,
    HEADS,
    IDS,
    PASTS,
    attention,
    check_against_plain,
    constants,
    embedded,
    info,
    save,
)

SWITCH = info("use_cache_branch", [1], TensorProto.BOOL)
_OUTPUTS = ["logits", "present.0.key", "present.0.value"]


def branch(nodes: list[NodeProto], prefix: str) -> object:
    return make_graph(nodes, prefix, [], [info(prefix + name, None) for name in _OUTPUTS])


def merged(condition: str, then_prefix: str = "a/", else_prefix: str = "b/", then_has_past: bool = True) -> NodeProto:
    """An If of two decoders, of which one has a past."""
    bodies = [
        branch(attention(prefix, with_past=has_past), prefix)
        for prefix, has_past in ((then_prefix, then_has_past), (else_prefix, not then_has_past))
    ]
    return make_node("If", [condition], _OUTPUTS, name="merged", then_branch=bodies[0], else_branch=bodies[1])


def check_merged(folder: Path, flag: bool) -> None:
    check_against_plain(folder, feeds={"use_cache_branch": [flag]})
    decoder = open_for_run(RunSettings(model=folder)).decoder
    assert not any(node.op_type == "If" for node in decoder.graph.nodes)
    assert "use_cache_branch" not in {wanted.name for wanted in decoder.graph.inputs}


def test_a_merged_decoder_runs_by_its_branch_with_a_past(tmp_path: Path) -> None:
    folder = save(tmp_path, [*embedded(), merged("use_cache_branch")], inputs=[IDS, *PASTS, SWITCH])
    check_merged(folder, True)
    names = [linear.spec.name for linear in open_for_run(RunSettings(model=folder)).linears]
    assert names == [f"a/{name}" for name in ("layers.0/q_proj", "layers.0/k_proj", "layers.0/v_proj")] + [
        "a/layers.0/o_proj", "a/lm_head"
    ]  # fmt: skip


def test_the_branch_with_a_past_may_be_the_other_one(tmp_path: Path) -> None:
    node = merged("use_cache_branch", then_has_past=False)
    check_merged(save(tmp_path, [*embedded(), node], inputs=[IDS, *PASTS, SWITCH]), False)


def test_branches_may_use_the_names_of_what_is_around_them(tmp_path: Path) -> None:
    """Both branches give their outputs, and all that is in them, the same names; and the flag is turned around."""
    turned = make_node("Not", ["use_cache_branch"], ["without"])
    node = merged("without", "same/", "same/", then_has_past=False)
    check_merged(save(tmp_path, [*embedded(), turned, node], inputs=[IDS, *PASTS, SWITCH]), True)


def test_a_branch_within_a_branch(tmp_path: Path) -> None:
    inner = merged("flat", "a/", "b/")
    nodes = [make_node("Squeeze", ["use_cache_branch"], ["flat"]), inner]
    outputs = [info(name, None) for name in _OUTPUTS]
    other = branch(attention("c/", with_past=False), "c/")
    node = make_node(
        "If", ["use_cache_branch"], _OUTPUTS, then_branch=make_graph(nodes, "outer", [], outputs), else_branch=other
    )
    check_merged(save(tmp_path, [*embedded(), node], inputs=[IDS, *PASTS, SWITCH]), True)


def test_a_branch_may_give_a_constant(tmp_path: Path) -> None:
    tensors = constants(inner=np.float32(2.0))
    copy = make_node("Identity", ["h"], ["x"])
    then = make_graph([copy], "then", [], [info("x", None), info("inner", None)], tensors)
    other = make_graph(
        [make_node("Neg", ["h"], ["x"]), make_node("Identity", ["never"], ["y"])],
        "else",
        [],
        [info("x", None), info("y", None)],
    )
    nodes = [
        *embedded(),
        make_node("If", ["yes"], ["handed", "factor"], then_branch=then, else_branch=other),
        make_node("Mul", ["handed", "factor"], ["twice"]),
    ]
    rest = attention()
    for node in rest:
        node.input[:] = ["twice" if name == "h" else name for name in node.input]
    check_against_plain(save(tmp_path, [*nodes, *rest], constants(yes=np.array(True))))


@pytest.mark.parametrize("name", ["h", "logits"])
@pytest.mark.parametrize("operator", ["Greater", "Less"])
def test_an_open_branch_reads_tensors_around_it(name: str, operator: str, tmp_path: Path) -> None:
    """A condition of the step stays an If: its outputs have the types of its branches' outputs."""
    nodes = [*embedded(), *attention()]
    np.full(1, 1.5, np.float32).tofile(tmp_path / "outside.bin")
    stored = TensorProto(name="factor", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    stored.external_data.add(key="location", value="outside.bin")
    written, read = f"{name}/raw", name
    for node in nodes:
        node.output[:] = [written if output == name else output for output in node.output]
    then = make_graph([make_node("Mul", [written, "factor"], ["z"])], "then", [], [info("z", None)], [stored])
    other = make_graph([make_node("Neg", [written], ["z"])], "else", [], [info("z", None)])
    place = next(i for i, node in enumerate(nodes) if written in node.output) + 1
    nodes[place:place] = [
        make_node("ReduceMax", [written], ["most"], keepdims=0),
        make_node(operator, ["most", "never"], ["which"]),
        make_node("If", ["which"], [read], then_branch=then, else_branch=other),
    ]
    folder = save(tmp_path, nodes)
    check_against_plain(folder)
    graph = open_for_run(RunSettings(model=folder)).decoder.graph
    assert graph.types[name].name == "FLOAT"


def layered(prefix: str, causal: bool, with_past: bool) -> list[NodeProto]:
    """Two layers: a token that sees those behind it in the first changes what others see of it in the second."""
    nodes = attention(prefix, with_past=with_past, causal=causal)
    second = attention(f"{prefix}2/", with_past=with_past, causal=causal)
    for node in nodes:
        node.output[:] = [f"{prefix}unread" if name == f"{prefix}logits" else name for name in node.output]
    for node in second:
        node.input[:] = [f"{prefix}out" if name == "h" else name.replace("values.0", "values.1") for name in node.input]
        node.name = node.name.replace("layers.0", "layers.1")
        node.input[:] = [name.replace("present.0", "present.1") for name in node.input]
        node.output[:] = [
            f"{prefix}logits" if name == f"{prefix}2/logits" else name.replace("present.0", "present.1")
            for name in node.output
        ]
    return [*nodes, *second]


@pytest.mark.parametrize("causal", [True, False])
def test_a_branch_that_was_traced_with_one_token_reads_prompts_token_by_token(
    causal: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a causal mask it is right for single tokens only; plain onnxruntime takes the other branch here."""
    names = ["present.0.key", "present.0.value", "2/present.1.key", "2/present.1.value"]
    bodies = []
    for prefix, with_past in (("a/", True), ("b/", False)):
        nodes = layered(prefix, causal or not with_past, with_past)
        outputs = [info(prefix + name, None) for name in ("logits", *names)]
        bodies.append(make_graph(nodes, prefix, [], outputs))
    given = ["logits", *(f"present.{layer}.{what}" for layer in (0, 1) for what in ("key", "value"))]
    node = make_node("If", ["use_cache_branch"], given, then_branch=bodies[0], else_branch=bodies[1])
    pasts = [info(past.name.replace("0", str(layer)), [1, HEADS, "p", HEAD_DIM]) for layer in (0, 1) for past in PASTS]
    outputs = [info(name, None) for name in given]
    folder = save(tmp_path, [*embedded(), node], (), [IDS, *pasts, SWITCH], outputs)
    check_against_plain(folder, feeds={"use_cache_branch": [False]})
    assert ("one token at a time" in caplog.text) is not causal
