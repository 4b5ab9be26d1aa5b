"""Decoding a model larger than RAM, beside the disk's own rate: `python -m bench.disk --model DIR --ram 0.75`.

A round is the disk alone, read just as a step reads it (past the page cache, nothing multiplied), then a decode step;
the page cache of the model's files is dropped before both. Ends in one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.loading.open_engine import open_engine
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import RunSettings
from offload.plan.ram_tiers import PIECE_BYTES, file_bytes
from offload.storage.weight_file import FileRange, WeightFile
from offload.weights.disk_ring import DiskRing

_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True)
class DiskRun:
    """Medians over rounds; `share_of_disk` is the median of the ratios within a round."""

    model: str
    ram_cap_bytes: int
    planned_ram_bytes: int
    ram_peak_bytes: int
    ram_anonymous_peak_bytes: int
    ram_file_peak_bytes: int
    linear_bytes: int
    file_bytes_per_step: int
    load_s: float
    disk_bytes_per_s: float
    step_bytes_per_s: float
    share_of_disk: float
    step_s: float
    chunk_tokens: int
    chunk_s: float


def measure(model: Path, ram: str, rounds: int, chunk_tokens: int) -> DiskRun:
    """Load under the cap, run one chunk, then rounds of the disk alone and a step."""
    files = weight_files(model)
    drop_page_cache(files)
    started = time.perf_counter()
    with closing(open_engine(RunSettings(model=model, cuda="0", ram=ram))) as engine:
        load_s = time.perf_counter() - started
        step_bytes = file_bytes(engine.plan.placements)
        if step_bytes == 0:
            raise SystemExit(f"error: --ram {ram} holds the whole model; nothing is read at a step")
        engine.decode(1)  # compiles, binds, touches
        drop_page_cache(files)
        started = time.perf_counter()
        engine.prefill([(7 * number) % 1000 + 3 for number in range(chunk_tokens)])
        chunk_s = time.perf_counter() - started
        disk, steps = [], []
        for number in range(rounds):
            drop_page_cache(files)
            disk.append(_disk_rate_alone(model, step_bytes))
            engine.decode(100 + number)  # the ring was full before the disk was measured: that step had a start
            drop_page_cache(files)
            started = time.perf_counter()
            engine.decode(200 + number)
            steps.append(time.perf_counter() - started)
        memory = engine.memory()
        return DiskRun(
            model=model.name,
            ram_cap_bytes=memory["ram_cap_bytes"],
            planned_ram_bytes=engine.plan.total_ram_bytes,
            ram_peak_bytes=memory["ram_peak_bytes"],
            ram_anonymous_peak_bytes=memory["ram_anonymous_peak_bytes"],
            ram_file_peak_bytes=memory["ram_file_peak_bytes"],
            linear_bytes=sum(p.linear.weight_bytes for p in engine.plan.placements),
            file_bytes_per_step=step_bytes,
            load_s=load_s,
            disk_bytes_per_s=statistics.median(disk),
            step_bytes_per_s=statistics.median(step_bytes / step_s for step_s in steps),
            share_of_disk=statistics.median(
                step_bytes / step_s / rate for step_s, rate in zip(steps, disk, strict=True)
            ),
            step_s=statistics.median(steps),
            chunk_tokens=chunk_tokens,
            chunk_s=chunk_s,
        )


def weight_files(model: Path) -> list[Path]:
    """The files that the weights of a model folder lie in."""
    initializers = open_for_run(RunSettings(model=model)).decoder.graph.initializers.values()
    return sorted(
        {initializer.source.path for initializer in initializers if isinstance(initializer.source, FileRange)}
    )


def drop_page_cache(files: Sequence[Path]) -> None:
    """Have the kernel forget what it has of the files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_rate(files: Sequence[Path], nbytes: int) -> float:
    """Bytes per second of the read-ahead ring alone, over `nbytes` of the files."""
    parts = [
        FileRange(WeightFile.at(file), start, min(PIECE_BYTES, file.stat().st_size - start))
        for file in files
        for start in range(0, file.stat().st_size, PIECE_BYTES)
    ][: max(1, nbytes // PIECE_BYTES)]
    ring = DiskRing([[part] for part in parts], _BUFFER_BYTES)
    started = time.perf_counter()
    ring.start()
    for piece in range(len(parts)):
        ring.acquire(piece)
        ring.release()
    elapsed_s = time.perf_counter() - started
    ring.close()
    return sum(part.nbytes for part in parts) / elapsed_s


def _disk_rate_alone(model: Path, nbytes: int) -> float:
    """As `disk_rate`, in a process of its own, whose buffer is not counted as the model's."""
    command = [sys.executable, "-m", "bench.disk", "--rate", str(nbytes), "--model", str(model)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure as the flags say and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--ram", default="0.75", help="the cap; a third of the model or less")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=256, help="tokens of the prefill that is timed")
    parser.add_argument("--rate", type=int, metavar="BYTES", help="only read so many bytes and print the rate")
    flags = parser.parse_args()
    if flags.rate is not None:
        print(disk_rate(weight_files(flags.model), flags.rate))
    else:
        print(json.dumps(asdict(measure(flags.model, flags.ram, flags.rounds, flags.chunk))))


if __name__ == "__main__":
    main()
