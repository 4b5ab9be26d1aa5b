"""The kernels for int8 and int4 blocks beside onnxruntime's MatMulNBits, in one run.

    python -m bench.quantised_kernels [--quick] [--threads 2] [--json FILE]

Both round activations to int8, as accuracy_level 4 of MatMulNBits does. Weights of one kind take turns, so that no
cache holds one until it comes again. Contestants take turns too, each after a rest in which idle threads of the
others stop to spin; ratios are taken inside a round and their median is shown.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from bench.interleave import interleave, timed
from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.spec.linear import Activations, BlockFormat, WeightFormat
from offload.spec.units import counted
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight

K, N = 2048, 5632
BLOCKS = (64, 128)
TURNS_BYTES = 96 << 20  # of weights that take turns; three times the largest cache here
SETTLE_S = 0.1
_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}


@dataclass(frozen=True)
class SpeedupRow:
    """One line: `gain` is onnxruntime's time over ours, a median of ratios; rates are ours."""

    format: str
    block: int
    rows: int
    ours_s: float
    onnxruntime_s: float
    gain: float
    gigabytes_per_s: float
    gflops_per_s: float


def random_weight(weight_format: WeightFormat, block: int, seed: int) -> StoredWeight:
    """[K, N] of random bytes, fp32 scales, no zero points."""
    random, blocks = np.random.default_rng(seed), K // block
    nbytes = N * K * _BITS[weight_format] // 8
    packed = np.frombuffer(random.bytes(nbytes), np.uint8).reshape(N, blocks, -1).copy()
    scales = random.uniform(0.001, 0.01, (N, blocks)).astype(np.float32)
    blocks = BlockFormat(_BITS[weight_format], block, WeightFormat.FP32)
    return StoredWeight(blocks, K, (StoredArray.of(packed), StoredArray.of(scales)))


def onnxruntime_session(weight: StoredWeight, threads: int) -> ort.InferenceSession:
    """y = x @ W by one MatMulNBits."""
    arrays = {"w": weight.arrays[0].array(), "scales": weight.arrays[1].array().reshape(-1)}
    blocks = weight.blocks
    attributes = {"K": K, "N": N, "bits": blocks.bits, "block_size": blocks.block, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", size]) for name, size in (("x", K), ("y", N))]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], weights), opset_imports=opsets, ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def settled(actions: list[Callable[[], object]], calls: int) -> Callable[[], float]:
    """A contestant: seconds of one of so many calls in a row, each of the next action."""
    turn: Iterator[int] = itertools.count()

    def batch() -> None:
        for _ in range(calls):
            actions[next(turn) % len(actions)]()

    def contestant() -> float:
        time.sleep(SETTLE_S)
        batch_s: float = timed(batch)()
        return batch_s / calls

    return contestant


def bench_kind(backend: NumbaBackend, weight_format: WeightFormat, block: int, rows: int, rounds: int) -> SpeedupRow:
    """One kind of weight and one number of rows."""
    nbytes = N * K * _BITS[weight_format] // 8
    weights = [random_weight(weight_format, block, seed) for seed in range(-(-TURNS_BYTES // nbytes))]
    x = np.random.default_rng(rows).standard_normal((rows, K), np.float32)
    y, theirs = np.zeros((rows, N), np.float32), np.zeros((rows, N), np.float32)
    groups = [backend.group([HostColumns(weight, 0, N, Activations.INT8)]) for weight in weights]
    bindings = [_bound(onnxruntime_session(weight, backend.threads), x, theirs) for weight in weights]
    groups[0].multiply(x, [y])
    bindings[0]()
    assert np.abs(y - theirs).max() < 1e-5 * np.abs(y).max(), "the two do not agree"
    calls = max(1, 2 * len(weights) // rows)
    contestants = {
        "ours": settled([partial(group.multiply, x, [y]) for group in groups], calls),
        "onnxruntime": settled(bindings, calls),
    }
    result = interleave(contestants, rounds, warmup=1)
    ours_s = result.median("ours")
    return SpeedupRow(
        str(weight_format),
        block,
        rows,
        ours_s,
        result.median("onnxruntime"),
        result.ratio("onnxruntime", "ours"),
        weights[0].nbytes / ours_s / 1e9,
        2 * K * N * rows / ours_s / 1e9,
    )


def _bound(session: ort.InferenceSession, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Callable[[], object]:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    return partial(session.run_with_iobinding, binding)


def main() -> None:
    """Measure, print a table, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    options = parser.parse_args()
    backend, rounds = NumbaBackend(options.threads), 5 if options.quick else 20
    table = Table(title=f"[rows, {K}] x [{K}, {N}], {counted(options.threads, 'thread')}")
    for name in ("format", "block", "rows", "ours ms", "onnxruntime ms", "gain", "GB/s", "GFLOP/s"):
        table.add_column(name, justify="left" if name == "format" else "right")
    found = []
    for weight_format, block, rows in itertools.product(_BITS, BLOCKS, (1, 8, 128)):
        row = bench_kind(backend, weight_format, block, rows, rounds)
        found.append(row)
        times = f"{row.ours_s * 1e3:.3f}", f"{row.onnxruntime_s * 1e3:.3f}", f"{row.gain:.2f}"
        rates = f"{row.gigabytes_per_s:.1f}", f"{row.gflops_per_s:.0f}"
        table.add_row(row.format, str(row.block), str(row.rows), *times, *rates)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
