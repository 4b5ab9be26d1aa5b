"""Compares the CPU kernels with the machine's bounds: memory reads for decode, BLAS for prefill.

    python -m bench.host_kernels [--quick] [--threads 2] [--json FILE]

Decode is compared with a sum over as many bytes on the same threads, prefill with numpy's fp32 sgemm of 128
rows on as many threads. Contestants take turns and ratios are taken inside a round; their median is shown,
and beside it the ratio of the fastest runs, which says more on a machine that is not idle.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import threadpoolctl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.interleave import Comparison, interleave, timed
from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.spec.linear import Layout, WeightFormat
from offload.spec.units import counted
from offload.storage.stored_weight import StoredWeight

Array = npt.NDArray[Any]

K, N = 2048, 5632
WEIGHTS = 8  # of 23 MB or more each: no cache holds one until its turn comes again
FORMATS = (WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32)
QKV = (2048, 256, 256)  # columns, as in a 1B model
SGEMM_ROWS = 128
SETTLE_S = 0.1  # idle threads of one pool spin on for a while, to the cost of the other pool


@dataclass(frozen=True)
class RooflineRow:
    """One line of a table: `rate` is GB/s or GFLOP/s, `of_roof` a median of ratios, `best` the fastest's."""

    table: str
    format: str
    layout: str
    rows: int
    seconds: float
    rate: float
    of_roof: float
    best: float


@numba.njit(nogil=True, fastmath=True)
def add_up(values: Array, sums: Array, thread: int) -> None:
    """The sum of one thread's part of `values`."""
    part = values[values.size * thread // len(sums) : values.size * (thread + 1) // len(sums)]
    total = np.float32(0)
    for i in range(part.size):
        total += part[i]
    sums[thread] = total


def read_all(pool: ThreadPoolExecutor, values: Array, sums: Array) -> None:
    """One sum for each thread over its part of `values`: as fast as these threads can read memory."""
    wait([pool.submit(add_up, values, sums, thread) for thread in range(len(sums))])


def turns(actions: Sequence[Callable[[], object]], turn: Iterator[int]) -> Callable[[], object]:
    """Each call does one of `actions`. Contestants share `turn`, so that none finds its weight cached."""
    return lambda: actions[next(turn) % len(actions)]()


def write_weights(path: Path) -> Array:
    """Small fp16 numbers, finite as bf16 and fp32 too, in a mapped file: halves[WEIGHTS, 2 K N]."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(WEIGHTS):
            (random.standard_normal(2 * K * N, np.float32) * 0.02).astype(np.float16).tofile(file)
    halves = np.memmap(path, np.float16, "r").reshape(WEIGHTS, 2 * K * N)
    np.add.reduce(halves.view(np.uint16), axis=None)  # every page is in memory and mapped from here on
    return halves


def columns(flat: Array, weight_format: WeightFormat, layout: Layout, n: int = N, k: int = K) -> HostColumns:
    """All columns of the first [n, k] or [k, n] weight in `flat`."""
    values = flat.view(weight_format.storage_dtype)[: n * k]
    shape = (n, k) if layout is Layout.NK else (k, n)
    return HostColumns(StoredWeight.dense(values.reshape(shape), weight_format, layout), 0, n)


def multiplier(
    backend: NumbaBackend, groups: Sequence[Sequence[HostColumns]], rows: int, turn: Iterator[int]
) -> Callable[[], object]:
    """Multiplies by one group after the other, always with the same x and outputs."""
    x = np.random.default_rng(rows).standard_normal((rows, groups[0][0].in_features), np.float32)
    outputs = [np.zeros((rows, one.out_features), np.float32) for one in groups[0]]
    return turns([partial(backend.group(group).multiply, x, outputs) for group in groups], turn)


def row(
    table: str,
    weight_format: WeightFormat,
    layout: str,
    rows: int,
    result: Comparison,
    name: str,
    roof: str,
    work: float,
    roof_work: float | None = None,
) -> RooflineRow:
    """The line of contestant `name`, which does `work` (bytes, operations) to the roof's `roof_work`."""
    seconds, share = result.median(name), work / (roof_work or work)
    best = share * min(result.readings(roof)) / min(result.readings(name))
    ratio = share * result.ratio(roof, name)
    return RooflineRow(table, str(weight_format), str(layout), rows, seconds, work / seconds / 1e9, ratio, best)


def bench_decode(
    backend: NumbaBackend, halves: Array, k: int, n: int, all_rows: Sequence[int], rounds: int
) -> list[RooflineRow]:
    """GB/s of weights [k, n] for a few rows of x, beside a plain read of as many bytes."""
    found = []
    pool = ThreadPoolExecutor(backend.threads)
    for weight_format in FORMATS:
        nbytes, sums = k * n * weight_format.itemsize_bytes, np.zeros(backend.threads, np.float32)
        reads = [flat.view(np.float32)[: nbytes // 4] for flat in halves]
        turn = itertools.count()
        contestants = {"read": timed(turns([partial(read_all, pool, values, sums) for values in reads], turn))}
        kinds = {f"{layout} {rows}": (layout, rows) for layout in Layout for rows in all_rows}
        for name, (layout, rows) in kinds.items():
            groups = [[columns(flat, weight_format, layout, n, k)] for flat in halves]
            contestants[name] = timed(multiplier(backend, groups, rows, turn))
        result = interleave(contestants, rounds, warmup=WEIGHTS)
        found.append(row(f"decode {k}x{n}", weight_format, "read", 0, result, "read", "read", nbytes))
        for name, (layout, rows) in kinds.items():
            found.append(row(f"decode {k}x{n}", weight_format, layout, rows, result, name, "read", nbytes))
    return found


def bench_prefill(backend: NumbaBackend, halves: Array, all_rows: Sequence[int], rounds: int) -> list[RooflineRow]:
    """GFLOP/s for many rows of x, beside numpy's sgemm of 128 rows with fp32 weights [N, K]."""
    found, flops, turn = [], 2 * K * N * SGEMM_ROWS, itertools.count()
    x, y = np.ones((SGEMM_ROWS, K), np.float32), np.empty((SGEMM_ROWS, N), np.float32)
    weights = [flat.view(np.float32).reshape(N, K).T for flat in halves]
    multiply = turns([partial(np.matmul, x, weight, out=y) for weight in weights], turn)

    def sgemm() -> float:
        with threadpoolctl.threadpool_limits(limits=backend.threads, user_api="blas"):
            time.sleep(SETTLE_S)
            return timed(multiply)()

    def settled(run: Callable[[], object]) -> Callable[[], float]:
        def contestant() -> float:
            time.sleep(SETTLE_S)
            return timed(run)()

        return contestant

    for rows in all_rows:
        kinds = {f"{f} {layout}": (f, layout) for f in FORMATS for layout in Layout}
        contestants = {"sgemm": sgemm}
        for name, (weight_format, layout) in kinds.items():
            groups = [[columns(flat, weight_format, layout)] for flat in halves]
            contestants[name] = settled(multiplier(backend, groups, rows, turn))
        result = interleave(contestants, rounds, warmup=1)
        if rows == all_rows[0]:
            found.append(
                row(f"prefill {K}x{N}", WeightFormat.FP32, "sgemm", SGEMM_ROWS, result, "sgemm", "sgemm", flops)
            )
        for name, (weight_format, layout) in kinds.items():
            line = row(
                f"prefill {K}x{N}",
                weight_format,
                layout,
                rows,
                result,
                name,
                "sgemm",
                flops * rows / SGEMM_ROWS,
                flops,
            )
            found.append(line)
    return found


def bench_group(backend: NumbaBackend, halves: Array, rounds: int) -> tuple[float, float, float]:
    """Seconds of q, k and v in one launch and in three, and the median of three / one."""
    starts = np.cumsum([0, *QKV]) * K

    def groups(weights: Array) -> list[list[HostColumns]]:
        return [
            [columns(flat[start:], WeightFormat.FP16, Layout.NK, n) for start, n in zip(starts, QKV, strict=False)]
            for flat in weights
        ]

    together, apart = groups(halves), groups(halves[:, K * N :])  # two sets: neither warms the other
    each = [multiplier(backend, [[group[i]] for group in apart], 1, itertools.count()) for i in range(len(QKV))]
    contestants = {
        "one": timed(multiplier(backend, together, 1, itertools.count())),
        "three": timed(lambda: [multiply() for multiply in each]),
    }
    result = interleave(contestants, 4 * rounds, warmup=WEIGHTS)
    return result.median("one"), result.median("three"), result.ratio("three", "one")


def show(console: Console, title: str, unit: str, rows: Sequence[RooflineRow]) -> None:
    """Print one table."""
    table = Table(title=escape(title))
    for name in ("format", "layout", "rows", "ms", unit, "of roof", "best"):
        table.add_column(name, justify="left" if name in ("format", "layout") else "right")
    for row in rows:
        numbers = (f"{row.seconds * 1e3:.2f}", f"{row.rate:.1f}", f"{row.of_roof:.2f}", f"{row.best:.2f}")
        table.add_row(row.format, row.layout, str(row.rows or ""), *numbers)
    console.print(table)


def main() -> None:
    """Measure, print tables, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    options = parser.parse_args()
    console = Console()
    start = time.perf_counter()
    backend = NumbaBackend(options.threads)
    backend.warm_up(itertools.product(FORMATS, Layout))
    compile_s = time.perf_counter() - start
    console.print(f"{counted(options.threads, 'thread')}; kernels ready in {compile_s:.2f} s")
    decode_rounds, prefill_rounds = (10, 2) if options.quick else (60, 6)
    with TemporaryDirectory() as folder:
        halves = write_weights(Path(folder) / "weights")
        few = (1, 4) if options.quick else (1, 2, 4, 8)
        decode = []
        for k, n in ((K, N), (N, K)):
            shape = bench_decode(backend, halves, k, n, few, decode_rounds)
            show(console, f"decode, [rows, {k}] x [{k}, {n}], mapped file", "GB/s", shape)
            decode += shape
        prefill = bench_prefill(backend, halves, (128,) if options.quick else (16, 64, 128, 512), prefill_rounds)
        show(console, f"prefill, [rows, {K}] x [{K}, {N}]", "GFLOP/s", prefill)
        one, three, ratio = bench_group(backend, halves, decode_rounds)
    console.print(f"q/k/v, fp16 NK, 1 row: one launch {one * 1e6:.0f} µs, three {three * 1e6:.0f} µs, {ratio:.2f} x")
    if options.json:
        found = {
            "threads": options.threads,
            "compile_s": compile_s,
            "kernels": [asdict(row) for row in (*decode, *prefill)],
            "group": {"one_launch_s": one, "three_launches_s": three, "ratio": ratio},
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
