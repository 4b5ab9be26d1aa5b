"""Stages and layers are those of the graph, whatever an exporter called and packed; so plans of one model are one."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from hybrid.graph.attention import find_attentions
from hybrid.graph.find import find_linears
from hybrid.graph.graph import ElementType, Graph, Initializer, Node
from hybrid.loading.opened_model import OpenedModel, open_for_run, opened_model
from hybrid.loading.planning import plan_request, plan_within
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from offload.plan.plan import Plan
from tests.unit.loading.test_planning import LAYERS, TINYLLAMA

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CACHE_BYTES = 2 * 4 * 64 * 4  # of a token in a layer: keys and values, heads, head size, fp32


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    folder = tmp_path_factory.mktemp("tinyllama")
    (folder / "config.json").write_text(json.dumps(TINYLLAMA))
    return RunSettings(model=folder, machine="colab-t4", cuda="0", context_tokens=512)


@pytest.fixture(scope="module")
def folder(settings: RunSettings) -> OpenedModel:
    return open_for_run(settings)


def renamed(graph: Graph) -> Graph:
    """As an exporter writes it that numbers its nodes."""
    names = {id(node): f"MatMul_{number}" for number, node in enumerate(graph.nodes)}
    return with_nodes(graph, [replace(node, kind="", layer=None, name=names[id(node)]) for node in graph.nodes])


def in_island(graph: Graph) -> Graph:
    """With attention that only onnxruntime runs."""
    return with_nodes(
        renamed(graph),
        [
            replace(node, attributes={**node.attributes, "smooth_softmax": 1})
            if node.op_type == "GroupQueryAttention"
            else node
            for node in renamed(graph).nodes
        ],
    )


def packed(graph: Graph) -> Graph:
    """With q, k and v in one Linear, as onnxruntime-genai has them."""
    nodes, weights, types, shapes = [], dict(graph.initializers), dict(graph.types), dict(graph.shapes)
    for node in renamed(graph).nodes:
        place = next((p for p in "qkv" if f"self_attn.{p}_proj" in node.outputs[0]), "")
        if place == "q":
            name = node.outputs[0].replace("q_proj", "qkv_proj")
            weights[f"{name}.weight"] = Initializer(f"{name}.weight", ElementType.FLOAT16, (2048 + 512, 2048), None)
            types |= {name: ElementType.FLOAT, f"{name}.weight": ElementType.FLOAT16}
            shapes[name] = (1, "S", 2560)
            nodes.append(
                replace(node, inputs=(node.inputs[0], f"{name}.weight"), outputs=(name,), name=f"{name}/MatMul")
            )
        elif not place:
            if node.op_type == "GroupQueryAttention":
                node = replace(node, inputs=(node.inputs[0].replace("q_proj", "qkv_proj"), "", "", *node.inputs[3:]))
            nodes.append(node)
    kept = {name: weight for name, weight in weights.items() if not re.search(r"\.[qkv]_proj\.weight", name)}
    return replace(with_nodes(graph, nodes), initializers=kept, types=types, shapes=shapes)


def with_nodes(graph: Graph, nodes: list[Node]) -> Graph:
    return replace(graph, nodes=tuple(nodes))


def as_exported(opened: OpenedModel, export: Callable[[Graph], Graph]) -> OpenedModel:
    decoder = replace(opened.decoder, graph=export(opened.decoder.graph))
    attentions = find_attentions(decoder.graph, decoder.cache, opened.context_tokens)
    return opened_model(decoder, find_linears(decoder.graph), opened.context_tokens, attentions)


def planned(opened: OpenedModel, settings: RunSettings, cuda: str) -> Plan:
    asked = replace(settings, cuda=cuda)
    return plan_within(plan_request(opened, choose_target(asked, look_in_profile), {}))


@pytest.mark.parametrize("export", [renamed, in_island, packed])
@pytest.mark.parametrize("cuda", ["0", "320MiB", "500MiB"])
def test_plans_of_a_model_predict_the_same_step_from_every_export(
    folder: OpenedModel, settings: RunSettings, export: Callable[[Graph], Graph], cuda: str
) -> None:
    expected = planned(folder, settings, cuda).predicted
    made = planned(as_exported(folder, export), settings, cuda).predicted
    assert made.decode_step_s == pytest.approx(expected.decode_step_s, rel=0.02)
    assert made.parts_s["attention"] == pytest.approx(expected.parts_s["attention"], rel=0.02)


@pytest.mark.parametrize("export", [lambda graph: graph, renamed, in_island, packed])
def test_a_plan_counts_the_islands_that_run(folder: OpenedModel, export: Callable[[Graph], Graph]) -> None:
    opened = as_exported(folder, export)
    assert opened.step.islands == sum(level.island is not None for level in opened.program.levels)
    groups = [group for stage in opened.step.stages for group in stage.groups]
    assert groups == list(dict.fromkeys(linear.spec.group for linear in opened.linears))
    work = [attention for stage in opened.step.stages for attention in stage.attentions]
    assert [attention.cache_bytes_per_token for attention in work] == [CACHE_BYTES] * LAYERS


def test_attention_comes_before_the_linear_that_reads_what_it_wrote(folder: OpenedModel) -> None:
    exported = as_exported(folder, in_island)
    readers = [linear.spec.group for linear in exported.linears if linear.spec.kind == "linear 4"]
    assert [group for stage in exported.step.stages if stage.attentions for group in stage.groups] == readers
    alone = [stage for stage in folder.step.stages if stage.attentions]
    assert [(stage.islands, stage.groups) for stage in alone] == [(0, ())] * LAYERS


@pytest.mark.parametrize("export", [renamed, in_island])
def test_linears_whose_names_are_counts_get_their_layer_and_place(
    folder: OpenedModel, export: Callable[[Graph], Graph]
) -> None:
    found = as_exported(folder, export).linears
    assert [linear.spec.layer for linear in found] == [linear.spec.layer for linear in folder.linears]
    places = {kind: f"linear {number + 1}" for number, kind in enumerate(KINDS)}
    assert [places[linear.spec.kind] for linear in folder.linears[:-1]] == [linear.spec.kind for linear in found[:-1]]


def test_the_builder_names_its_linears(folder: OpenedModel) -> None:
    assert [linear.spec.kind for linear in folder.linears[:7]] == list(KINDS)
    assert (folder.linears[-1].spec.kind, folder.linears[-1].spec.layer) == ("lm_head", "")
