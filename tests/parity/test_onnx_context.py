"""The context of an ONNX decoder: never more than its tables and masks reach, whatever its config says."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto
from onnx.helper import make_node

from hybrid.errors import UsageError
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings
from tests.engines import engine_on_cpu
from tests.onnx_decoders import (
    HEAD_DIM,
    IDS,
    MASK,
    PASTS,
    POSITIONS,
    attention,
    check_against_plain,
    constants,
    embedded,
    gqa,
    gqa_tensors,
    save,
    tables,
    weights,
)

ROWS = 24


def learned(folder: Path) -> Path:
    tensors = constants(wpe=weights(positions=ROWS)["wpe"])
    return save(folder, [*embedded(learned_positions=True), *attention()], tensors, [IDS, POSITIONS, *PASTS])


def learned_from_the_mask(folder: Path) -> Path:
    """Positions counted out of the mask, and two rows of the table that no position has, as OPT has it."""
    counted = [
        make_node("CumSum", ["attention_mask", "one"], ["sums"]),
        make_node("Mul", ["sums", "attention_mask"], ["seen sums"]),
        make_node("Sub", ["seen sums", "one"], ["from zero"]),
        make_node("Shape", ["past_key_values.0.key"], ["past/shape"]),
        make_node("Gather", ["past/shape", "two"], ["past/length"]),
        make_node("Unsqueeze", ["past/length", "first"], ["past/lengths"]),
        make_node("Slice", ["from zero", "past/lengths", "far", "second"], ["from here"]),
        make_node("Add", ["from here", "two"], ["position_ids"]),
    ]
    tensors = constants(wpe=weights(positions=ROWS + 2)["wpe"], far=np.array([2**62]), second=np.array([1]))
    return save(folder, [*counted, *embedded(learned_positions=True), *attention()], tensors, [IDS, MASK, *PASTS])


def a_causal_table(folder: Path) -> Path:
    """A square of booleans that rows and columns are cut out of, as old GPT-2 exports have it."""
    nodes = [node for node in attention() if node.output[0] not in ("columns", "flat rows", "rows", "seen")]
    place = next(i for i, node in enumerate(nodes) if node.op_type == "Where")
    nodes[place:place] = [
        make_node("Unsqueeze", ["before", "first"], ["starts"]),
        make_node("Unsqueeze", ["total", "first"], ["ends"]),
        make_node("Slice", ["square", "starts", "ends", "axis 2"], ["some rows"]),
        make_node("Slice", ["some rows", "first", "ends", "axis 3"], ["seen"]),
    ]
    square = np.tril(np.ones((1, 1, ROWS, ROWS), np.bool_))
    tensors = constants(square=square, **{"axis 2": np.array([2]), "axis 3": np.array([3])})
    return save(folder, [*embedded(), *nodes], tensors)


def fused_tables(folder: Path) -> Path:
    return save(folder, [*embedded(), *gqa()], gqa_tensors(rows=ROWS), [IDS, MASK, *PASTS])


def rotary_operators(folder: Path) -> Path:
    """RotaryEmbedding by itself, in front of plain attention."""
    nodes = attention()
    for number, node in enumerate(nodes):
        if node.output[0] == "q/turned":
            node.output[0] = "q/unturned"
            nodes.insert(
                number + 1,
                make_node(
                    "RotaryEmbedding",
                    ["q/unturned", "position_ids", "cos", "sin"],
                    ["q/turned"],
                    domain="com.microsoft",
                ),
            )
            break
    cos, sin = tables(ROWS)
    return save(folder, [*embedded(), *nodes], constants(cos=cos, sin=sin), [IDS, POSITIONS, *PASTS])


def cut_tables(folder: Path) -> Path:
    """A table of the text's length is cut out first, and rows of that are looked up, as old Llama exports have it."""
    nodes: list[NodeProto] = [
        make_node("Shape", ["attention_mask"], ["mask/shape"]),
        make_node("Gather", ["mask/shape", "one"], ["all tokens"]),
        make_node("Unsqueeze", ["all tokens", "first"], ["ends"]),
        make_node("Slice", ["wpe", "first", "ends", "first"], ["places table"]),
        make_node("Gather", ["places table", "position_ids"], ["places"]),
        make_node("Gather", ["embed", "input_ids"], ["words"]),
        make_node("Add", ["words", "places"], ["h"]),
        *attention(),
    ]
    tensors = constants(wpe=weights(positions=ROWS)["wpe"])
    return save(folder, nodes, tensors, [IDS, MASK, POSITIONS, *PASTS])


GRAPHS: list[Callable[[Path], Path]] = [
    learned, learned_from_the_mask, a_causal_table, fused_tables, rotary_operators, cut_tables
]  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"n_positions": 4096}])
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_context_ends_where_the_graph_does(
    graph: Callable[[Path], Path], config: dict[str, int], tmp_path: Path
) -> None:
    folder = graph(tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_for_run(RunSettings(model=folder))
    assert opened.context_tokens == ROWS
    assert any(str(ROWS) in note for note in make_plan(RunSettings(model=folder, device="cpu")).notes)
    with pytest.raises(UsageError, match=f"--context {ROWS + 1}.*{ROWS} "):
        make_plan(RunSettings(model=folder, context_tokens=ROWS + 1, device="cpu"))
    with closing(engine_on_cpu(opened)) as engine:  # up to the last token
        engine.prefill(list(range(ROWS - 1)))
        assert np.isfinite(engine.decode(3)).all()
    with closing(engine_on_cpu(opened)) as engine:
        assert np.isfinite(engine.prefill(list(range(ROWS)))).all()


CONFIGS: Sequence[dict[str, object]] = [
    {"n_positions": 20}, {"n_ctx": 20}, {"seq_length": 20}, {"max_position_embeddings": 20},
    {"max_sequence_length": 20}, {"max_seq_len": 20}, {"n_ctx": 20, "n_positions": 22},
    {"text_config": {"max_position_embeddings": 20}},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)
def test_the_context_ends_where_its_makers_say(config: dict[str, object], tmp_path: Path) -> None:
    folder = save(tmp_path, [*embedded(), *attention()])
    (folder / "config.json").write_text(json.dumps(config))
    assert open_for_run(RunSettings(model=folder)).context_tokens == 20
    with pytest.raises(UsageError, match="20"):
        open_for_run(RunSettings(model=folder, context_tokens=21))


def test_a_distance_that_is_cut_off_bounds_nothing(tmp_path: Path) -> None:
    """The table is looked up by min(position, 23)."""
    last = [make_node("Min", ["real_positions", "most"], ["position_ids"])]
    tensors = constants(wpe=weights(positions=ROWS)["wpe"], most=np.int64(ROWS - 1))
    nodes = [
        make_node("Shape", ["attention_mask"], ["mask/shape"]),
        make_node("Gather", ["mask/shape", "one"], ["all tokens"]),
        make_node("Shape", ["past_key_values.0.key"], ["past/shape"]),
        make_node("Gather", ["past/shape", "two"], ["before tokens"]),
        make_node("Range", ["before tokens", "all tokens", "one"], ["real_positions"]),
        *last,
        make_node("Gather", ["embed", "input_ids"], ["words"]),
        make_node("Gather", ["wpe", "position_ids"], ["places"]),
        make_node("Add", ["words", "places"], ["h"]),
        *attention(),
    ]
    folder = save(tmp_path, nodes, tensors, [IDS, MASK, *PASTS])
    assert open_for_run(RunSettings(model=folder)).context_tokens == 2048
    check_against_plain(folder, count=30)


@pytest.mark.parametrize("context", [12, 16, 17, 40])
@pytest.mark.parametrize("attributes", [{}, {"sliding_window_cache": 1}])
def test_windows_and_contexts_of_any_length(context: int, attributes: dict[str, int], tmp_path: Path) -> None:
    """A window of 16 in caches that are shorter, as long, and longer."""
    inputs = [IDS, MASK, *PASTS]
    nodes = gqa(local_window_size=16)
    plain = save(tmp_path / "plain", [*embedded(), *nodes], gqa_tensors(rows=64), inputs)
    nodes = gqa(local_window_size=16, **attributes)
    folder = save(tmp_path / "ours", [*embedded(), *nodes], gqa_tensors(rows=64), inputs)
    check_against_plain(folder, min(context, 30) - 7, context_tokens=context, plain=plain)


def test_tables_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    cos = TensorProto(name="cos", data_type=1, dims=[ROWS, HEAD_DIM // 2], data_location=TensorProto.EXTERNAL)
    sin = TensorProto(name="sin", data_type=1, dims=[ROWS, HEAD_DIM // 2], data_location=TensorProto.EXTERNAL)
    for number, tensor in enumerate((cos, sin)):
        array = tables(ROWS)[number]
        array.tofile(tmp_path / tensor.name)
        tensor.external_data.add(key="location", value=tensor.name)
    tensors = [tensor for tensor in gqa_tensors() if tensor.name not in ("cos", "sin")]
    folder = save(tmp_path, [*embedded(), *gqa()], [*tensors, cos, sin], [IDS, MASK, *PASTS])
    assert open_for_run(RunSettings(model=folder)).context_tokens == ROWS
    check_against_plain(folder)
