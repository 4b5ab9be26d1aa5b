"""Our attention beside onnxruntime's GroupQueryAttention: `python -m bench.attention [--quick] [--json FILE]`.

Both append to a cache of full length in place and turn q and k themselves. Contestants take turns, over the caches
of several layers, so that none finds its own in the processor's. Times are the fastest rounds'. Ratios, onnxruntime's
time by ours, are medians of those inside a round, and beside them those of the fastest runs, which say more on a
machine that is not idle. onnxruntime runs on one thread, as islands of a cut graph do, and on all.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from rich.console import Console
from rich.table import Table

from bench.interleave import interleave
from bench.shapes import SHAPES, Shape
from hybrid.families.blocks.writer import MICROSOFT, GraphWriter
from hybrid.families.tensors.tensor_source import ConfigTensors
from hybrid.formats.onnx_graph import serialize
from hybrid.graph.graph import ElementType
from offload.host.attention import AttentionArrays, HostAttention
from offload.host.backend import NumbaBackend
from offload.spec.attention import AttentionSpec

Array = npt.NDArray[Any]

LAYERS = 4
DEPTHS, QUICK_DEPTHS = (0, 128, 1024, 4000), (128, 4000)
NEW_TOKENS, QUICK_NEW_TOKENS = (1, 128, 512), (1, 128)
SETTLE_S = 0.1  # idle threads of one pool spin on for a while, to the cost of the other pool


@dataclass(frozen=True)
class AttentionTimes:
    """One case: seconds a layer (the fastest), and how many times as long onnxruntime takes as ours, caches in fp32."""

    shape: str
    depth: int
    new_tokens: int
    ours_fp32_s: float
    ours_fp16_s: float
    ort_one_thread_s: float
    ort_all_threads_s: float
    times_one_thread: float
    times_all_threads: float
    best_one_thread: float
    best_all_threads: float


@dataclass(frozen=True)
class Case:
    """The arrays of one layer's shape; every contestant has caches of its own."""

    shape: Shape
    depth: int
    new_tokens: int

    @property
    def capacity(self) -> int:
        """Tokens of a cache."""
        return self.depth + self.new_tokens

    def random(self, *dims: int, dtype: Any = np.float32) -> Array:
        """Numbers as they are in a model."""
        return np.random.default_rng(len(dims)).standard_normal(dims, np.float32).astype(dtype)

    def new(self) -> tuple[Array, Array, Array]:
        """q, k and v of the new tokens."""
        d = self.shape.head_dim
        q, kv = self.shape.heads * d, self.shape.kv_heads * d
        return self.random(self.new_tokens, q), self.random(self.new_tokens, kv), self.random(self.new_tokens, kv)

    def caches(self, dtype: Any) -> list[tuple[Array, Array]]:
        """Keys and values of every layer, [kv heads, capacity, d]."""
        one = self.random(self.shape.kv_heads, self.capacity, self.shape.head_dim, dtype=dtype)
        return [(one.copy(), one.copy()) for _ in range(LAYERS)]

    def tables(self) -> tuple[Array, Array]:
        """Cosines and sines, [capacity, d / 2]."""
        half = self.shape.head_dim // 2
        angles = np.arange(self.capacity)[:, None] * self.shape.rope_theta ** (-np.arange(half) / half)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def ours(case: Case, attention: HostAttention, dtype: Any) -> Callable[[], object]:
    """All layers through our kernel."""
    shape, (q, k, v), (cos, sin) = case.shape, case.new(), case.tables()
    last = np.array([case.capacity - 1], np.int32)
    spec = AttentionSpec(shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5, rotary_dim=shape.head_dim)
    output = np.empty_like(q)
    calls = [
        attention.bind(spec, AttentionArrays(q, k, v, keys, values, cos, sin, last, output))
        for keys, values in case.caches(dtype)
    ]
    return lambda: [call.run() for call in calls]


def theirs(case: Case, threads: int) -> Callable[[], object]:
    """All layers through one onnxruntime session."""
    shape, d = case.shape, case.shape.head_dim
    write = GraphWriter(ConfigTensors(ElementType.FLOAT))
    cache_shape = (1, shape.kv_heads, case.capacity, d)
    for name, width in (("q", shape.heads * d), ("k", shape.kv_heads * d), ("v", shape.kv_heads * d)):
        write.input(name, ElementType.FLOAT, (1, case.new_tokens, width))
    for name in ("keys", "values"):
        write.input(name, ElementType.FLOAT, cache_shape)
    write.input("last", ElementType.INT32, (1,))
    write.input("total", ElementType.INT32, ())
    cos, sin = (write.constant(name, table) for name, table in zip(("cos", "sin"), case.tables(), strict=True))
    write.node(
        "GroupQueryAttention",
        ("q", "k", "v", "keys", "values", "last", "total", cos, sin),
        "out",
        (1, case.new_tokens, shape.heads * d),
        more_outputs={"new_keys": cache_shape, "new_values": cache_shape},
        domain=MICROSOFT,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
    )
    for name in ("out", "new_keys", "new_values"):
        write.output(name)
    graph = write.graph("attention")
    constants = graph.initializers.values()
    model = serialize("attention", graph.nodes, graph.inputs, graph.outputs, constants, graph.opsets, Path())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    as_value = onnxruntime.OrtValue.ortvalue_from_numpy
    q, k, v = (as_value(array[None]) for array in case.new())
    last, total = as_value(np.array([case.capacity - 1], np.int32)), as_value(np.array(case.capacity, np.int32))
    output = as_value(np.empty((1, case.new_tokens, shape.heads * d), np.float32))
    bindings = []
    for cache in case.caches(np.float32):
        keys, values = (as_value(array[None]) for array in cache)
        binding = session.io_binding()
        fed = {"q": q, "k": k, "v": v, "keys": keys, "values": values, "last": last, "total": total}
        for name, value in fed.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in (("out", output), ("new_keys", keys), ("new_values", values)):
            binding.bind_ortvalue_output(name, value)
        bindings.append(binding)
    return lambda: [session.run_with_iobinding(binding) for binding in bindings]


def a_layer(run: Callable[[], object]) -> Callable[[], float]:
    """A contestant that gives seconds a layer, after the other pools have gone to sleep and its own woke up."""

    def contestant() -> float:
        time.sleep(SETTLE_S)
        run()
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / LAYERS

    return contestant


def measure(name: str, depth: int, new_tokens: int, attention: HostAttention, rounds: int) -> AttentionTimes:
    """All contestants of one case by turns."""
    case = Case(SHAPES[name], depth, new_tokens)
    runs = {
        "ours": ours(case, attention, np.float32),
        "ours fp16": ours(case, attention, np.float16),
        "ort 1": theirs(case, 1),
        "ort": theirs(case, attention.threads),
    }
    result = interleave({label: a_layer(run) for label, run in runs.items()}, rounds, warmup=1)
    best = {label: min(result.readings(label)) for label in runs}
    return AttentionTimes(
        name,
        depth,
        new_tokens,
        *best.values(),
        result.ratio("ort 1", "ours"),
        result.ratio("ort", "ours"),
        best["ort 1"] / best["ours"],
        best["ort"] / best["ours"],
    )


def show(console: Console, rows: Sequence[AttentionTimes]) -> None:
    """Print the table."""
    table = Table(title="milliseconds a layer, and onnxruntime / ours")
    for name in (
        "shape",
        "depth",
        "new",
        "ours",
        "fp16 cache",
        "ort 1",
        "ort all",
        "1 thread",
        "all",
        "best 1",
        "best all",
    ):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for row in rows:
        seconds = (row.ours_fp32_s, row.ours_fp16_s, row.ort_one_thread_s, row.ort_all_threads_s)
        ratios = (row.times_one_thread, row.times_all_threads, row.best_one_thread, row.best_all_threads)
        numbers = [f"{1e3 * value:.3f}" for value in seconds] + [f"{value:.2f}x" for value in ratios]
        table.add_row(row.shape, str(row.depth), str(row.new_tokens), *numbers)
    console.print(table)


def main() -> None:
    """Measure, print a table, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["mistral-7b", "tinyllama-1.1b"])
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    options = parser.parse_args()
    attention = HostAttention(NumbaBackend(options.threads))
    rows = [
        measure(shape, depth, new_tokens, attention, rounds=3 if options.quick else 11)
        for shape in options.shapes
        for new_tokens in (QUICK_NEW_TOKENS if options.quick else NEW_TOKENS)
        for depth in (QUICK_DEPTHS if options.quick else DEPTHS)
    ]
    show(Console(width=120), rows)
    if options.json:
        found = {"threads": options.threads, "layers": LAYERS, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
