"""Models that turn positions another way in long texts: one pass, pieces, and a text that grows give the same."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_node
from onnx.numpy_helper import from_array

from hybrid.errors import UsageError
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import RunSettings
from tests.onnx_decoders import (
    IDS,
    MASK,
    PASTS,
    PROMPT,
    Plain,
    check_against_plain,
    constants,
    embedded,
    engine_of,
    gqa,
    gqa_tensors,
    info,
    save,
    tables,
)

FIRST, SHORT_ROWS, LONG_ROWS = 13, 12, 40


def branch(rows: int, factor: float) -> object:
    """Tables as constant nodes, as genai's builder has them."""
    nodes = [
        make_node("Constant", [], [name], value=from_array(array, name))
        for name, array in zip(("c", "s"), tables(rows, factor=factor), strict=True)
    ]
    return make_graph(nodes, "branch", [], [info("c", None), info("s", None)])


def computed(factor: float) -> object:
    """Tables as the branch works them out of one around it."""
    nodes = [make_node("Mul", ["angles", f"factor {factor}"], ["turned"])]
    nodes += [make_node("Cos", ["turned"], ["c"]), make_node("Sin", ["turned"], ["s"])]
    tensors = constants(**{f"factor {factor}": np.float32(1 / factor)})
    return make_graph(nodes, "branch", [], [info("c", None), info("s", None)], tensors)


def longrope(folder: Path, then: object, other: object, condition: list[NodeProto] | None = None) -> Path:
    nodes = gqa()
    place = next(i for i, node in enumerate(nodes) if node.output[0] == "total")
    nodes[place:place] = [
        *(condition or [make_node("Greater", ["long total", "most"], ["is long"])]),
        make_node("If", ["is long"], ["cos", "sin"], then_branch=then, else_branch=other),
    ]
    angles = np.outer(np.arange(LONG_ROWS), 50.0 ** -(np.arange(16) / 16)).astype(np.float32)
    tensors = [*gqa_tensors(), *constants(most=np.int64(FIRST - 1), angles=angles)]
    return save(folder, [*embedded(), *nodes], tensors, [IDS, MASK, *PASTS])


def constant_tables(folder: Path) -> Path:
    return longrope(folder, branch(LONG_ROWS, 3.0), branch(SHORT_ROWS, 1.0))


def turned_around(folder: Path) -> Path:
    """By the sum of the mask, and the long table in the other branch."""
    condition = [
        make_node("Cast", ["counts"], ["as float"], to=TensorProto.FLOAT),
        make_node("Squeeze", ["as float"], ["count"]),
        make_node("Less", ["count", "first float"], ["is long"]),
    ]
    folder = longrope(folder, branch(SHORT_ROWS, 1.0), branch(LONG_ROWS, 3.0), condition)
    return with_tensor(folder, from_array(np.float32(FIRST), "first float"))


def with_tensor(folder: Path, tensor: TensorProto) -> Path:
    import onnx

    model = onnx.load(folder / "model.onnx")
    model.graph.initializer.append(tensor)
    onnx.save(model, folder / "model.onnx")
    return folder


def computed_tables(folder: Path) -> Path:
    return longrope(folder, computed(3.0), computed(1.0))


GRAPHS: list[Callable[[Path], Path]] = [constant_tables, turned_around, computed_tables]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("prompt_tokens", [5, FIRST - 1, FIRST, 20])
def test_a_text_across_the_switch(graph: Callable[[Path], Path], prompt_tokens: int, tmp_path: Path) -> None:
    prompt = (PROMPT * 4)[:prompt_tokens]
    check_against_plain(graph(tmp_path), count=12, prompt=prompt)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_text_that_is_trimmed_is_read_as_a_short_one_again(graph: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = graph(tmp_path)
    plain, ids = Plain(folder), (PROMPT * 4)[: FIRST + 4]
    with engine_of(folder) as engine:
        for length in (FIRST + 4, 6, FIRST, 1):
            engine.trim(min(length, engine.position))
            start = min(engine.position, length - 1)
            engine.trim(start)
            found = engine.prefill(ids[start:length])
            assert engine.position == length
            assert np.abs(found - plain.logits(ids[:length])).max() < 1e-4


def test_an_interrupted_reading_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a text is read once more: the engine still has the text, and reads it with the next token."""
    folder = constant_tables(tmp_path)
    plain, ids = Plain(folder), (PROMPT * 4)[:FIRST]
    with engine_of(folder) as engine:
        engine.prefill(ids[:-1])
        run = engine._executor.run

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(engine._executor, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.decode(ids[-1])
        monkeypatch.setattr(engine._executor, "run", run)
        assert engine.position == FIRST - 1
        assert np.abs(engine.decode(ids[-1]) - plain.logits(ids)).max() < 1e-4


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_context_that_ends_before_the_switch_has_none(graph: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = graph(tmp_path)
    opened = open_for_run(RunSettings(model=folder, context_tokens=FIRST - 1))
    assert not opened.decoder.switches
    assert not any(node.op_type == "If" for node in opened.decoder.graph.nodes)
    check_against_plain(folder, count=5, context_tokens=FIRST - 1)


def test_the_context_ends_with_the_longer_table(tmp_path: Path) -> None:
    folder = constant_tables(tmp_path)
    opened = open_for_run(RunSettings(model=folder))
    assert opened.context_tokens == LONG_ROWS
    assert [switch.first for switch in opened.decoder.switches] == [FIRST]
    assert any(str(FIRST) in note for note in opened.decoder.notes)
    with pytest.raises(UsageError, match=str(LONG_ROWS)):
        open_for_run(RunSettings(model=folder, context_tokens=LONG_ROWS + 1))


def test_a_table_that_is_too_short_for_its_texts(tmp_path: Path) -> None:
    """The short one ends at 8 tokens, and is used up to 12."""
    folder = longrope(tmp_path, branch(LONG_ROWS, 3.0), branch(8, 1.0))
    with pytest.raises(UsageError, match="--context 8"):
        open_for_run(RunSettings(model=folder))
    assert open_for_run(RunSettings(model=folder, context_tokens=8)).context_tokens == 8
    with pytest.raises(UsageError, match="8"):
        open_for_run(RunSettings(model=folder, context_tokens=10))


def test_a_branch_by_the_number_of_new_tokens_stays_in_the_graph(tmp_path: Path) -> None:
    """It is no matter of the text's length: every step decides."""
    condition = [make_node("Size", ["input_ids"], ["size"]), make_node("Greater", ["size", "most"], ["is long"])]
    folder = longrope(tmp_path, branch(LONG_ROWS, 1.0), branch(LONG_ROWS, 1.0), condition)
    opened = open_for_run(RunSettings(model=folder))
    assert not opened.decoder.switches
    with closing(engine_of(folder)):
        check_against_plain(folder)
