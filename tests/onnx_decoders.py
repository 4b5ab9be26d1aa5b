"""Tiny ONNX decoders with random weights, in parts that a test joins; and what plain onnxruntime makes of a file."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from hybrid.engine.engine import Engine
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import RunSettings
from tests.engines import PLACEMENTS, engine_on_cpu, engine_on_simulated

HIDDEN, HEADS, HEAD_DIM, VOCAB = 32, 2, 32, 48
PROMPT = [3, 41, 7, 19, 30, 2]

Array = npt.NDArray[Any]


def info(name: str, shape: Sequence[int | str] | None, element_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return make_tensor_value_info(name, element_type, shape)


IDS = info("input_ids", [1, "s"], TensorProto.INT64)
MASK = info("attention_mask", [1, "t"], TensorProto.INT64)
POSITIONS = info("position_ids", [1, "s"], TensorProto.INT64)
PASTS = [info(f"past_key_values.0.{what}", [1, HEADS, "p", HEAD_DIM]) for what in ("key", "value")]
PRESENTS = [info(f"present.0.{what}", [1, HEADS, "t", HEAD_DIM]) for what in ("key", "value")]
LOGITS = info("logits", [1, "s", VOCAB])


def weights(positions: int = 0, dtype: str = "float32") -> dict[str, Array]:
    """The weights of one layer, and a table of learned positions if there are any."""
    rng = np.random.default_rng(5)
    shapes = {"embed": (VOCAB, HIDDEN), "head": (HIDDEN, VOCAB)}
    shapes |= {f"w{what}": (HIDDEN, HEADS * HEAD_DIM) for what in "qkv"} | {"wo": (HEADS * HEAD_DIM, HIDDEN)}
    if positions:
        shapes["wpe"] = (positions, HIDDEN)
    scales = {"embed": 1.0, "wpe": 1.0, "head": 0.5}
    return {n: (rng.standard_normal(s) * scales.get(n, 0.25)).astype(dtype) for n, s in shapes.items()}


def tables(rows: int, rotary_dim: int = HEAD_DIM, factor: float = 1.0) -> tuple[Array, Array]:
    """Cosines and sines, [rows, rotary_dim / 2]."""
    angles = np.outer(np.arange(rows), 50.0 ** -(np.arange(rotary_dim // 2) * 2 / rotary_dim)) / factor
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def constants(**values: Any) -> list[TensorProto]:
    return [from_array(np.asarray(value), name) for name, value in values.items()]


def small_constants() -> list[TensorProto]:
    """Initializers that the nodes of `attention` read."""
    return constants(
        split=np.array([1, -1, HEADS, HEAD_DIM]),
        join=np.array([1, -1, HEADS * HEAD_DIM]),
        never=np.float32(-1e9),
        zero=np.int64(0),
        one=np.int64(1),
        two=np.int64(2),
        first=np.array([0]),
        last=np.array([-1]),
    )


def embedded(learned_positions: bool = False) -> list[NodeProto]:
    """input_ids (and position_ids) to "h"."""
    if not learned_positions:
        return [make_node("Gather", ["embed", "input_ids"], ["h"])]
    return [
        make_node("Gather", ["embed", "input_ids"], ["words"]),
        make_node("Gather", ["wpe", "position_ids"], ["places"]),
        make_node("Add", ["words", "places"], ["h"]),
    ]


def attention(prefix: str = "", with_past: bool = True, causal: bool = True) -> list[NodeProto]:
    """ "h" to "logits" and the presents, their names and all that is between with a prefix; plain operators.

    Without `causal` new tokens see those behind them too, as in a graph that was traced with a single one.
    """

    def p(name: str) -> str:
        return prefix + name

    nodes = []
    for what in "qkv":
        nodes += [
            make_node("MatMul", ["h", f"w{what}"], [p(what)], name=p(f"layers.0/{what}_proj")),
            make_node("Reshape", [p(what), "split"], [p(f"{what}/heads")]),
            make_node("Transpose", [p(f"{what}/heads")], [p(f"{what}/turned")], perm=[0, 2, 1, 3]),
        ]
    for what, name in (("k", "key"), ("v", "value")):
        new = [p(f"{what}/turned")]
        past = [f"past_key_values.0.{name}", *new] if with_past else new
        nodes.append(make_node("Concat", past, [p(f"present.0.{name}")], axis=2))
    nodes += [
        make_node("Transpose", [p("present.0.key")], [p("keys")], perm=[0, 1, 3, 2]),
        make_node("MatMul", [p("q/turned"), p("keys")], [p("raw")]),
    ]
    scores = p("raw")
    if causal:
        scores = p("scores")
        nodes += [
            make_node("Shape", [p("present.0.key")], [p("shape")]),
            make_node("Gather", [p("shape"), "two"], [p("total")]),
            make_node("Shape", ["input_ids"], [p("ids/shape")]),
            make_node("Gather", [p("ids/shape"), "one"], [p("new")]),
            make_node("Sub", [p("total"), p("new")], [p("before")]),
            make_node("Range", ["zero", p("total"), "one"], [p("columns")]),
            make_node("Range", [p("before"), p("total"), "one"], [p("flat rows")]),
            make_node("Unsqueeze", [p("flat rows"), "last"], [p("rows")]),
            make_node("LessOrEqual", [p("columns"), p("rows")], [p("seen")]),
            make_node("Where", [p("seen"), p("raw"), "never"], [p("scores")]),
        ]
    return [
        *nodes,
        make_node("Softmax", [scores], [p("shares")], axis=-1),
        make_node("MatMul", [p("shares"), p("present.0.value")], [p("mixed")]),
        make_node("Transpose", [p("mixed")], [p("mixed/turned")], perm=[0, 2, 1, 3]),
        make_node("Reshape", [p("mixed/turned"), "join"], [p("joined")]),
        make_node("MatMul", [p("joined"), "wo"], [p("o")], name=p("layers.0/o_proj")),
        make_node("Add", ["h", p("o")], [p("out")]),
        make_node("MatMul", [p("out"), "head"], [p("logits")], name=p("lm_head")),
    ]


def gqa(
    *, packed: bool = True, rotary: bool = True, element_type: int = TensorProto.FLOAT, **attributes: Any
) -> list[NodeProto]:
    """ "h" to "logits" and the presents, by GroupQueryAttention with `mask` as its lengths, as genai's builder has it.

    Reads the tables "cos" and "sin" where it is `rotary`, and weights in fp32; the cache is of `element_type`.
    """
    half = element_type != TensorProto.FLOAT
    nodes = [
        make_node("ReduceSum", ["attention_mask", "ones"], ["counts"], keepdims=0),
        make_node("Sub", ["counts", "one"], ["long lengths"]),
        make_node("Cast", ["long lengths"], ["lengths"], to=TensorProto.INT32),
        make_node("Shape", ["attention_mask"], ["mask/shape"]),
        make_node("Gather", ["mask/shape", "one"], ["long total"]),
        make_node("Cast", ["long total"], ["total"], to=TensorProto.INT32),
    ]
    for what in "qkv":
        nodes.append(make_node("MatMul", ["h", f"w{what}"], [f"{what}/plain"], name=f"layers.0/{what}_proj"))
        nodes.append(make_node("Cast", [f"{what}/plain"], [what], to=element_type))
    operands = ["q", "k", "v"]
    if packed:
        nodes = [node for node in nodes if node.output[0][0] not in "qkv"]
        nodes += [
            make_node("MatMul", ["h", "wqkv"], ["plain"], name="layers.0/qkv_proj"),
            make_node("Cast", ["plain"], ["qkv"], to=element_type),
        ]
        operands = ["qkv", "", ""]
    pasts, presents = ([f"{name}.0.{what}" for what in ("key", "value")] for name in ("past_key_values", "present"))
    turned = ["cos", "sin"] if rotary else []
    usual = {"num_heads": HEADS, "kv_num_heads": HEADS, "do_rotary": int(rotary)}
    return [
        *nodes,
        make_node(
            "GroupQueryAttention",
            [*operands, *pasts, "lengths", "total", *turned],
            ["attended", *presents],
            name="layers.0/attention",
            domain="com.microsoft",
            **(usual | attributes),
        ),
        make_node("Cast", ["attended"], ["joined"], to=TensorProto.FLOAT),
        make_node("MatMul", ["joined", "wo"], ["o"], name="layers.0/o_proj"),
        make_node("Add", ["h", "o"], ["out"]),
        make_node("MatMul", ["out", "head"], ["wide logits"], name="lm_head"),
        make_node("Cast", ["wide logits"], ["logits"], to=element_type if half else TensorProto.FLOAT),
    ]


def gqa_tensors(rows: int = 0, rotary_dim: int = HEAD_DIM, element_type: int = TensorProto.FLOAT) -> list[TensorProto]:
    """Initializers that the nodes of `gqa` read besides: q, k and v side by side, axes, tables of `rows` positions."""
    packed = np.concatenate([weights()[f"w{what}"] for what in "qkv"], axis=1)
    found = constants(wqkv=packed, ones=np.array([1]))
    if rows:
        cos, sin = tables(rows, rotary_dim)
        dtype = np.float16 if element_type == TensorProto.FLOAT16 else np.float32
        found += constants(cos=cos.astype(dtype), sin=sin.astype(dtype))
    return found


def save(
    folder: Path,
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto] = (),
    inputs: Sequence[ValueInfoProto] = (IDS, *PASTS),
    outputs: Sequence[ValueInfoProto] = (LOGITS, *PRESENTS),
    opset: int = 18,
) -> Path:
    """A model of these nodes, over the weights and small constants of this file besides `tensors`."""
    own = {tensor.name for tensor in tensors}
    usual = [*(from_array(array, name) for name, array in weights().items()), *small_constants()]
    kept = [*tensors, *(tensor for tensor in usual if tensor.name not in own)]
    graph = make_graph(list(nodes), "main", list(inputs), list(outputs), kept)
    opsets = [make_opsetid("", opset), make_opsetid("com.microsoft", 1)]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    return folder


class Plain:
    """A file in plain onnxruntime, without a cache: every text in one pass."""

    def __init__(self, folder: Path) -> None:
        self._session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def logits(self, ids: Sequence[int], **others: Any) -> npt.NDArray[np.float32]:
        """The logits after the last of `ids`."""
        count = len(ids)
        feeds: dict[str, Any] = {
            "input_ids": [ids], "attention_mask": np.ones((1, count)), "position_ids": [range(count)], **others
        }  # fmt: skip
        dtypes = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
        arrays = {}
        for wanted in self._session.get_inputs():
            if wanted.name in feeds:
                arrays[wanted.name] = np.asarray(feeds[wanted.name], dtypes.get(wanted.type, np.float32))
            else:
                shape = [dim if isinstance(dim, int) else 0 for dim in wanted.shape]
                shape[0] = 1 if not isinstance(wanted.shape[0], int) else shape[0]
                shape[-1] = shape[-1] or HEAD_DIM
                half = wanted.type == "tensor(float16)"
                arrays[wanted.name] = np.zeros(shape, np.float16 if half else np.float32)
        last: npt.NDArray[np.float32] = self._session.run(["logits"], arrays)[0][0, -1].astype(np.float32)
        return last


def check_against_plain(
    folder: Path,
    count: int = 8,
    context_tokens: int | None = None,
    prompt: Sequence[int] = PROMPT,
    atol: float = 1e-4,
    feeds: Mapping[str, Any] | None = None,
    plain: Path | None = None,
) -> None:
    """On the CPU and under placements, in one prefill and in pieces: the logits that one plain pass gives.

    `atol` is for logits up to 10, and grows with larger ones. `plain` is another file that has to give them.
    """
    opened = open_for_run(RunSettings(model=folder, context_tokens=context_tokens))
    assert opened.linears
    engines = [engine_on_cpu(opened)]
    engines += [engine_on_simulated(opened, p) for p in PLACEMENTS if p.name in ("none", "three ways")]
    reference = Plain(plain or folder)
    for number, engine in enumerate(engines):
        with closing(engine):
            _follow(engine, reference, prompt, count, atol, feeds or {}, pieces=number % 2 == 1)


def _follow(
    engine: Engine, plain: Plain, prompt: Sequence[int], count: int, atol: float, feeds: Mapping[str, Any], pieces: bool
) -> None:
    ids = list(prompt)
    for start in range(0, len(ids), 2 if pieces else len(ids)):
        found = engine.prefill(ids[start : start + (2 if pieces else len(ids))])
    for _ in range(count):
        expected = plain.logits(ids, **feeds)
        assert np.abs(expected - found).max() < atol * max(1, np.abs(expected).max() / 10)
        ids.append(int(expected.argmax()))
        found = engine.decode(ids[-1])


def engine_of(folder: Path, context_tokens: int | None = None) -> Engine:
    """The engine of `--cuda 0`."""
    return engine_on_cpu(open_for_run(RunSettings(model=folder, context_tokens=context_tokens)))
