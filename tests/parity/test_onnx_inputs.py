"""Inputs of ONNX decoders, under the names of their exporters; sizes that a file does not declare."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx.helper import make_node

from hybrid.errors import ModelConfigError, UnsupportedModelError
from hybrid.graph.decoder import Decoder
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import RunSettings
from tests.onnx_decoders import (
    HEAD_DIM,
    HEADS,
    IDS,
    LOGITS,
    MASK,
    PASTS,
    POSITIONS,
    PRESENTS,
    PROMPT,
    Plain,
    attention,
    check_against_plain,
    constants,
    embedded,
    engine_of,
    gqa,
    gqa_tensors,
    info,
    save,
    weights,
)

INT64, INT32, FLOAT16 = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16
UNSIZED = [info(past.name, ["b", HEADS, "p", "d"]) for past in PASTS]


def opened(folder: Path) -> Decoder:
    return open_for_run(RunSettings(model=folder)).decoder


def kept(scalar: ValueInfoProto) -> list[NodeProto]:
    """A decoder that gives so many of the last logits as it is told."""
    nodes = [*embedded(), *attention()]
    nodes[-1].output[0] = "all"
    return [
        *nodes,
        make_node("Neg", [scalar.name], ["negative"]),
        make_node("Reshape", ["negative", "last"], ["start"]),
        make_node("Slice", ["all", "start", "far", "axis"], ["logits"]),
    ]


@pytest.mark.parametrize("name", ["num_logits_to_keep", "logits_to_keep"])
@pytest.mark.parametrize("shape", [[], [1]])
def test_the_logits_of_the_last_token_are_asked_for(name: str, shape: list[int], tmp_path: Path) -> None:
    scalar = info(name, shape, INT64)
    tensors = constants(far=np.array([2**62]), axis=np.array([1]))
    folder = save(tmp_path, kept(scalar), tensors, [IDS, *PASTS, scalar])
    check_against_plain(folder, feeds={name: np.ones(shape)})


FED: dict[str, tuple[list[Any], int, Any]] = {  # the shape, the type, and what plain onnxruntime is fed
    "position_ids": ([3, 1, "s"], INT64, lambda count: [[range(count)]] * 3),
    "cache_position": (["s"], INT64, lambda count: range(count)),
    "token_type_ids": ([1, "s"], INT32, lambda count: [[0] * count]),
    "past_sequence_length": ([1], INT64, lambda count: [0]),
    "total_sequence_length": ([], INT32, lambda count: count),
    "attention_mask": ([1, "t"], INT32, lambda count: [[1] * count]),
    "beam_idx": ([1], INT32, lambda count: [0]),
}


@pytest.mark.parametrize("name", FED)
def test_inputs_with_a_value_that_follows(name: str, tmp_path: Path) -> None:
    """Each is summed up and added to the logits, so that a wrong one would show; a step is one token here."""
    shape, element_type, value = FED[name]
    nodes = [*embedded(), *attention()]
    nodes[-1].output[0] = "all"
    nodes += [
        make_node("Cast", [name], ["as float"], to=TensorProto.FLOAT),
        make_node("ReduceMax", ["as float"], ["most"], keepdims=0),
        make_node("Add", ["all", "most"], ["logits"]),
    ]
    folder = save(tmp_path, nodes, (), [IDS, *PASTS, info(name, shape, element_type)])
    decoder = opened(folder)
    assert name in {wanted.name for wanted in decoder.graph.inputs}
    if name not in ("past_sequence_length",):  # of which a text in one pass has another
        with engine_of(folder) as engine:
            ids = list(PROMPT)
            found = engine.prefill(ids)
            for _ in range(4):
                expected = Plain(folder).logits(ids, **{name: value(len(ids))})
                assert np.abs(expected - found).max() < 1e-4
                ids.append(int(expected.argmax()))
                found = engine.decode(ids[-1])


def test_an_input_that_nothing_reads_need_not_be_fed(tmp_path: Path) -> None:
    inputs = [IDS, *PASTS, info("pixel_values", [1, 3, 8, 8])]
    check_against_plain(
        save(tmp_path, [*embedded(), *attention()], (), inputs), feeds={"pixel_values": np.zeros((1, 3, 8, 8))}
    )


REFUSED: dict[str, ValueInfoProto] = {
    "an input we do not know": info("encoder_hidden_states", [1, "e", 8]),
    "a mask made for a whole matrix": info("attention_mask", [1, 1, "s", "t"]),
    "a mask of a fixed length": info("attention_mask", [1, 64], INT64),
    "positions of a fixed number": info("position_ids", [1, 16], INT64),
    "a batch of two": info("position_ids", [2, "s"], INT64),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_we_cannot_feed_are_named(case: str, tmp_path: Path) -> None:
    wanted = REFUSED[case]
    nodes = [*embedded(), *attention()]
    nodes[-1].output[0] = "all"
    nodes += [make_node("Shape", [wanted.name], ["x"]), make_node("Cast", ["x"], ["y"], to=1)]
    nodes += [make_node("ReduceSum", ["y"], ["z"], keepdims=0), make_node("Add", ["all", "z"], ["logits"])]
    with pytest.raises(UnsupportedModelError, match=wanted.name):
        opened(save(tmp_path, nodes, (), [IDS, *PASTS, wanted]))


def test_a_cache_of_a_fixed_length_is_refused(tmp_path: Path) -> None:
    pasts = [info(past.name, [1, HEADS, 63, HEAD_DIM]) for past in PASTS]
    with pytest.raises(UnsupportedModelError, match="63"):
        opened(save(tmp_path, [*embedded(), *attention()], (), [IDS, *pasts]))


def test_a_graph_that_takes_one_token_at_a_time(tmp_path: Path) -> None:
    """A prompt runs token by token; attention that was traced with one token needs no mask then."""
    one = info("input_ids", [1, 1], INT64)
    folder = save(tmp_path / "one", [*embedded(), *attention(causal=False)], (), [one, *PASTS])
    many = save(tmp_path / "many", [*embedded(), *attention()])
    with engine_of(folder) as engine:
        assert np.abs(engine.prefill(PROMPT) - Plain(many).logits(PROMPT)).max() < 1e-4


def genai(folder: Path, head_size: int | None = HEAD_DIM, inputs: Any = None, outputs: Any = None) -> None:
    decoder = {"inputs": inputs or {}, "outputs": outputs or {}, "num_key_value_heads": HEADS}
    if head_size is not None:
        decoder["head_size"] = head_size
    model = {"context_length": 40, "eos_token_id": [5, 6], "bos_token_id": 3, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_the_head_size_is_not_that_of_a_rotary_table(packed: bool, told: bool, tmp_path: Path) -> None:
    """Half of each head is turned, and the cache declares no head size: the projections tell it."""
    tensors = gqa_tensors(rows=64, rotary_dim=HEAD_DIM // 2)
    folder = save(tmp_path, [*embedded(), *gqa(packed=packed)], tensors, [IDS, MASK, *UNSIZED])
    if told:
        genai(folder)
    check_against_plain(folder)
    limit = 40 if told else 64
    assert (opened(folder).context_limit, opened(folder).graph.shapes[PASTS[0].name][3]) == (limit, HEAD_DIM)


def test_genai_config_tells_sizes_and_ends(tmp_path: Path) -> None:
    """A cache appended to by Concat, of which the graph tells nothing."""
    pasts = [info(past.name, ["b", "h", "p", "d"]) for past in PASTS]
    folder = save(tmp_path, [*embedded(), *attention()], (), [IDS, *pasts])
    with pytest.raises(UnsupportedModelError, match=r"past_key_values.0.key"):
        opened(folder)
    genai(folder)
    decoder = opened(folder)
    assert decoder.graph.shapes[PASTS[0].name] == (1, HEADS, "P", HEAD_DIM)
    assert (decoder.eos_token_ids, decoder.bos_token_id, decoder.context_limit) == ((5, 6), 3, 40)
    genai(folder, head_size=-1)
    with pytest.raises(ModelConfigError, match="head_size is -1"):
        opened(folder)


def test_genai_config_that_contradicts_the_graph_is_told(tmp_path: Path) -> None:
    folder = save(tmp_path, [*embedded(), *gqa()], gqa_tensors(rows=64), [IDS, MASK, *PASTS])
    genai(folder, head_size=64)
    decoder = opened(folder)
    assert decoder.graph.shapes[PASTS[0].name][3] == HEAD_DIM
    assert any("head_size of 64" in note for note in decoder.notes)


def test_names_of_tensors_may_be_others(tmp_path: Path) -> None:
    """A tensor named logits is something else in this file."""
    nodes = [*embedded(), *attention()]
    names = {"input_ids": "tokens", "logits": "scores/all", "out": "logits"}
    for ours, theirs in (("past_key_values", "old"), ("present", "new")):
        names |= {f"{ours}.0.{what}": f"{theirs}_{what}_0" for what in ("key", "value")}
    for node in nodes:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
    ids = info("tokens", [1, "s"], INT64)
    pasts = [info(names[past.name], [1, HEADS, "p", HEAD_DIM]) for past in PASTS]
    outputs = [info(names[output.name], None) for output in (LOGITS, *PRESENTS)]
    folder = save(tmp_path / "named", nodes, (), [ids, *pasts], outputs)
    with pytest.raises(UnsupportedModelError, match="scores/all"):
        opened(folder)
    genai(
        folder,
        inputs={"input_ids": "tokens", "past_key_names": "old_key_%d", "past_value_names": "old_value_%d"},
        outputs={"logits": "scores/all", "present_key_names": "new_key_%d", "present_value_names": "new_value_%d"},
    )
    usual = save(tmp_path / "usual", [*embedded(), *attention()])
    with engine_of(folder) as engine:
        assert np.abs(engine.prefill(PROMPT) - Plain(usual).logits(PROMPT)).max() < 1e-4


def test_genai_config_says_which_file_is_the_decoder(tmp_path: Path) -> None:
    folder = save(tmp_path, [*embedded(), *attention()])
    (folder / "model.onnx").rename(folder / "text.onnx")
    (folder / "vision.onnx").write_bytes(b"")
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "text.onnx"}}}))
    assert opened(folder).graph.name == "text"


def test_half_caches_and_separate_projections(tmp_path: Path) -> None:
    pasts = [info(past.name, [1, HEADS, "p", HEAD_DIM], FLOAT16) for past in PASTS]
    outputs = [info(output.name, None, FLOAT16) for output in (LOGITS, *PRESENTS)]
    nodes = gqa(packed=False, element_type=FLOAT16)
    tensors = gqa_tensors(rows=64, element_type=FLOAT16)
    check_against_plain(save(tmp_path, [*embedded(), *nodes], tensors, [IDS, MASK, *pasts], outputs), atol=0.02)


@pytest.mark.parametrize("element_type", [INT32, INT64])
def test_old_exports_keep_keys_and_values_in_one(element_type: int, tmp_path: Path) -> None:
    """past_0 is [2, 1, heads, past, head size]; ids, mask and positions are int32."""
    split = [make_node("Split", ["past_0"], ["pk", "pv"], axis=0, num_outputs=2)]
    for what, name in (("pk", "key"), ("pv", "value")):
        split.append(make_node("Squeeze", [what, "first"], [f"past_key_values.0.{name}"]))
    ends = [make_node("Unsqueeze", [f"present.0.{n}", "first"], [f"{n}/one"]) for n in ("key", "value")]
    ends.append(make_node("Concat", ["key/one", "value/one"], ["present_0"], axis=0))
    past = info("past_0", [2, "b", HEADS, "p", HEAD_DIM])
    ids, positions = (info(i.name, [1, "s"], element_type) for i in (IDS, POSITIONS))
    tensors = constants(wpe=weights(positions=64)["wpe"])
    nodes = [*embedded(learned_positions=True), *split, *attention(), *ends]
    outputs = [LOGITS, info("present_0", None)]
    folder = save(tmp_path, nodes, tensors, [ids, positions, past], outputs)
    check_against_plain(folder)
    with engine_of(folder) as engine:
        expected = engine.prefill(PROMPT)
        engine.trim(2)
        assert np.abs(engine.prefill(PROMPT[2:]) - expected).max() < 1e-5
