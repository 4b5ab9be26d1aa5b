"""Quantised weights outside onnxruntime: against its MatMulNBits, against whole graphs, and made on load."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.engine.engine import Engine
from hybrid.graph.find import find_linears
from hybrid.graph.graph import Node
from hybrid.loading.opened_model import OpenedModel, open_for_run, opened_model
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import BLOCKS, Activations, WeightFormat
from offload.storage.stored_weight import StoredWeight
from tests import onnxruntime_int8
from tests.engines import PLACEMENTS, SHARED_MODELS, Placement, engine_on_cpu, engine_on_simulated, greedy, read_golden
from tests.hf_models import random_weights, tiny_config, write_model
from tests.quantised import random_weight

INT8, INT4 = WeightFormat.INT8, WeightFormat.INT4
EXPORTS = ["stories260K/optimum-q4", "babyllama-tok105-1M/genai-cpu-int4", "babyllama-tok105-1M/genai-cpu-int8"]
_IDS = [1, 40, 77, 12, 9, 55, 60, 33, 21, 8, 99, 14]


def matmul_nbits(weight: StoredWeight, x: npt.NDArray[np.float32], accuracy_level: int) -> npt.NDArray[np.float32]:
    """y = x @ W in onnxruntime."""
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    codes, *others = (array.array() for array in weight.arrays)
    arrays = {"w": codes, **{name: other.reshape(-1) for name, other in zip(("scales", "zeros"), others, strict=False)}}
    n, k, blocks = weight.out_features, weight.in_features, weight.blocks
    attributes = {"K": k, "N": n, "bits": blocks.bits, "block_size": blocks.block, "accuracy_level": accuracy_level}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", size]) for name, size in (("x", k), ("y", n))]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("weight_format", [INT8, INT4])
def test_agrees_with_onnxruntime(weight_format: WeightFormat, block: int, zero_points: bool) -> None:
    """Both round activations alike, or not at all; then only the order of summation differs."""
    weight = random_weight(96, 512, weight_format, block, np.float32, zero_points)
    for rows in (1, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 512), np.float32)
        for level, activations in ((4, Activations.INT8), (1, Activations.FLOAT)):
            expected = matmul_nbits(weight, x, level)
            columns = HostColumns(weight, 0, 96, activations)
            y = np.empty((rows, 96), np.float32)
            NumbaBackend(2).group([columns]).multiply(x, [y])
            assert np.abs(y - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest) -> OpenedModel:
    folder: Path = SHARED_MODELS / "exports" / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return open_for_run(RunSettings(model=folder))


def with_float_activations(opened: OpenedModel) -> OpenedModel:
    """Nothing is rounded, neither by onnxruntime nor by our kernels."""

    def exact(node: Node) -> Node:
        if node.op_type != "MatMulNBits":
            return node
        return replace(node, attributes={**node.attributes, "accuracy_level": 1})

    graph = opened.decoder.graph
    changed = replace(graph, nodes=tuple(map(exact, graph.nodes)))
    return opened_model(
        replace(opened.decoder, graph=changed),
        find_linears(changed),
        opened.context_tokens,
        opened.attentions,
        opened.host_format,
        opened.activations,
    )


def test_every_block_of_an_export_runs_outside_onnxruntime(export: OpenedModel) -> None:
    outside = [linear.name for level in export.program.levels for linear in level.linears]
    assert len(outside) > 20
    assert outside == [linear.spec.name for linear in export.linears]  # a head in fp32 too


def test_cut_and_whole_exports_agree(export: OpenedModel) -> None:
    exact = with_float_activations(export)
    with closing(engine_on_cpu(exact, whole=True)) as whole, closing(engine_on_cpu(exact)) as cut:
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:]):
            assert np.abs(whole.prefill(ids) - cut.prefill(ids)).max() < 1e-4


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_every_placement_of_blocks_gives_the_same_tokens(export: OpenedModel, placement: Placement) -> None:
    """A few tokens at a time are multiplied as on the host; longer prompts as fp16, where the device does it.

    Where activations are rounded to int8, the last bit of a sum, which is up to the processor, may tip a rounding.
    """
    for opened, bound in ((with_float_activations(export), 1e-3), (export, 0.3)):
        with closing(engine_on_cpu(opened)) as on_host, closing(engine_on_simulated(opened, placement)) as placed:
            expected_ids, expected = greedy(on_host, _IDS, 8, chunk=MAX_ROWS)
            ids, logits = greedy(placed, _IDS, 8, chunk=MAX_ROWS)
            assert ids == expected_ids
            assert np.abs(logits - expected).max() < bound


@pytest.mark.parametrize("placement", PLACEMENTS[:2], ids=str)
def test_long_prompts_meet_blocks_as_fp16_on_a_device(export: OpenedModel, placement: Placement) -> None:
    """Nearer to float activations than int8 ones are."""
    exact = with_float_activations(export)
    with (
        closing(engine_on_cpu(exact)) as floats,
        closing(engine_on_cpu(export)) as rounded,
        closing(engine_on_simulated(export, placement)) as placed,
    ):
        logits = floats.prefill(_IDS)
        assert np.abs(placed.prefill(_IDS) - logits).max() < 0.02
        assert np.abs(rounded.prefill(_IDS) - logits).max() > 0.05


def test_a_long_step_keeps_nothing_of_what_it_passed_on(export: OpenedModel) -> None:
    """Sizes of these graphs are not known beforehand, so that every output is allocated anew."""
    with closing(engine_on_cpu(export)) as engine:
        engine.prefill(_IDS)
        engine.trim(0)
        outputs_bytes = sum(4 * len(_IDS) * linear.spec.out_features for linear in export.linears)
        tracemalloc.start()
        try:
            engine.prefill(_IDS)
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept_bytes < outputs_bytes / 2


def test_asking_for_float_activations_is_heard(export: OpenedModel) -> None:
    with (
        closing(engine_on_cpu(open_for_run(RunSettings(export.decoder.folder, activations="float")))) as asked,
        closing(engine_on_cpu(with_float_activations(export))) as exact,
        closing(engine_on_cpu(export)) as rounded,
    ):
        logits = exact.prefill(_IDS)
        np.testing.assert_array_equal(asked.prefill(_IDS), logits)
        assert np.abs(rounded.prefill(_IDS) - logits).max() > 1e-4


def test_dequantised_weights_meet_rounded_activations_when_asked() -> None:
    """Those of a DequantizeLinear stay in onnxruntime, which rounds as it does by default."""
    folder = SHARED_MODELS / "exports/stories260K/transposed-qdq"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    onnxruntime_int8.skip_unless_exact()
    golden = read_golden(folder / "ort.json")
    with (
        closing(engine_on_cpu(open_for_run(RunSettings(folder)))) as exact,
        closing(engine_on_cpu(open_for_run(RunSettings(folder, activations="int8")))) as rounded,
    ):
        assert np.abs(rounded.prefill(golden.prompt_ids) - golden.first_step_logits).max() < 5e-5
        assert np.abs(exact.prefill(golden.prompt_ids) - golden.first_step_logits).max() > 1e-3


@pytest.mark.parametrize(("host_dtype", "bound"), [("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize(
    "placement", [None, *(p for p in PLACEMENTS if p.name in ("half of the columns", "three ways"))], ids=str
)
def test_weights_quantised_on_load_give_about_the_same_logits(
    placement: Placement | None, host_dtype: str, bound: float
) -> None:
    """Relative to the spread of logits; also where a device has some columns as they are, and streams some as made."""

    def engine(settings: RunSettings) -> Engine:
        opened = open_for_run(settings)
        return engine_on_cpu(opened) if placement is None else engine_on_simulated(opened, placement)

    prompt = list(range(3, 15))
    with (
        closing(engine(RunSettings(DEMO_MODEL))) as plain,
        closing(engine(RunSettings(DEMO_MODEL, host_dtype=host_dtype))) as quantised,
    ):
        assert all(p.host_format == host_dtype for p in quantised.plan.placements)
        assert any(f"quantised to {host_dtype} on load" in note for note in quantised.plan.notes)
        assert quantised.plan.ram_bytes["host weights"] < 0.6 * plain.plan.ram_bytes["host weights"]
        ids, expected = greedy(plain, prompt, 8)
        found_ids, logits = greedy(quantised, prompt, 8)
    assert 0 < np.abs(logits - expected).std() < bound * expected.std()
    if host_dtype == "int8":
        assert found_ids == ids


def test_fp32_weights_are_quantised_on_load(tmp_path: Path) -> None:
    """K of 32 and 48 is less than a block."""
    config = tiny_config()
    write_model(tmp_path, config, random_weights(config))
    opened = open_for_run(RunSettings(tmp_path, host_dtype="int8", activations="float"))
    with (
        closing(engine_on_cpu(open_for_run(RunSettings(tmp_path)))) as plain,
        closing(engine_on_cpu(opened)) as engine,
    ):
        assert len(opened.linears) == 15
        assert {placement.host_format for placement in engine.plan.placements} == {INT8}
        expected, logits = plain.prefill(range(30)), engine.prefill(range(30))
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
