"""Speed beside other busy programs: `python -m bench.busy --model DIR [--host-dtype int8] [--json FILE]`.

Two processes hold the model: one whose threads wait as ours do, one whose threads sleep whenever they wait. Nothing
else, one and then two programs that do nothing but compute run beside each in turn; each round tries all of that.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

WAYS = ("ours", "passive")
PHASES = ("decode", "prefill")
PREFILL_TOKENS = 128
_SETTLE_S = 0.1  # for the kernel to place what has just begun to compute


@dataclass(frozen=True)
class WaitingRate:
    """Tokens a second, each round's, of one way of waiting beside a number of busy programs."""

    way: str
    phase: str
    busy: int
    tokens_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.tokens_per_s)


class Contestant:
    """A process with a loaded model, which runs when it is told to and else sleeps."""

    def __init__(self, way: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "bench.busy", "--contestant", way, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def measure(self, phase: str, seconds: float) -> float:
        """Tokens a second."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{phase} {seconds}\n")
        self.process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process that was to be measured has ended")
        return line


def contest(way: str, options: argparse.Namespace) -> None:
    """Be a contestant: measure what standard input asks for."""
    from hybrid.loading.open_engine import open_engine
    from hybrid.loading.settings import RunSettings
    from offload.host.team import PASSIVE, shared_team

    settings = RunSettings(
        model=options.model, cuda="0", host_dtype=options.host_dtype, threads=options.threads, context_tokens=512
    )
    if way == "passive":
        shared_team().wait_like(PASSIVE)
    ids = [(7 * number) % 1000 + 3 for number in range(PREFILL_TOKENS)]
    with open_engine(settings) as engine:
        engine.prefill(ids)
        engine.trim(1)
        engine.decode(5)
        print("ready", flush=True)
        for line in sys.stdin:
            phase, seconds = line.split()
            started, tokens = time.perf_counter(), 0
            while time.perf_counter() - started < float(seconds):
                engine.trim(1 if phase == "decode" else 0)
                logits = engine.decode(5) if phase == "decode" else engine.prefill(ids)
                assert logits.size
                tokens += 1 if phase == "decode" else len(ids)
            print(tokens / (time.perf_counter() - started), flush=True)


@contextmanager
def busy_programs(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that compute, stopped for now."""
    programs = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        for program in programs:
            program.send_signal(signal.SIGSTOP)
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(options: argparse.Namespace, arguments: list[str]) -> list[WaitingRate]:
    """Every way and phase beside every number of busy programs, round by round."""
    found: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        programs = stack.enter_context(busy_programs(max(options.busy)))
        contestants = {way: Contestant(way, arguments) for way in WAYS}
        for contestant in contestants.values():
            stack.callback(contestant.process.kill)
        for number in range(options.rounds):
            for busy in options.busy:
                for program in programs[:busy]:
                    program.send_signal(signal.SIGCONT)
                time.sleep(_SETTLE_S)
                for phase in PHASES:
                    for way in WAYS if number % 2 else reversed(WAYS):
                        rate = contestants[way].measure(phase, options.seconds)
                        found.setdefault((way, phase, busy), []).append(rate)
                for program in programs[:busy]:
                    program.send_signal(signal.SIGSTOP)
    return [WaitingRate(*key, tuple(rates)) for key, rates in sorted(found.items())]


def show(readings: list[WaitingRate], console: Console) -> None:
    """A table: each reading, beside its own quiet one and beside passive waiting."""
    medians = {(reading.way, reading.phase, reading.busy): reading.median for reading in readings}
    quietest = min(reading.busy for reading in readings)
    table = Table(
        "phase", "busy programs", "ours, tokens/s", "of quiet", "passive, tokens/s", "of quiet", "ours / passive"
    )
    for phase in PHASES:
        for busy in sorted({reading.busy for reading in readings}):
            ours, passive = medians["ours", phase, busy], medians["passive", phase, busy]
            quiet = [medians[way, phase, quietest] for way in WAYS]
            cells = [f"{ours:.1f}", f"{ours / quiet[0]:.2f}", f"{passive:.1f}", f"{passive / quiet[1]:.2f}"]
            table.add_row(phase, str(busy), *cells, f"{ours / passive:.2f}")
    console.print(table)


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host-dtype", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each reading")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy programs")
    parser.add_argument("--json", type=Path, help="write the readings to this file")
    parser.add_argument("--contestant", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contest(options.contestant, options)
        return
    console = Console()
    readings = measure(options, sys.argv[1:])
    console.print(f"{os.cpu_count()} CPUs, medians of {options.rounds} rounds")
    show(readings, console)
    if options.json:
        options.json.write_text(json.dumps([asdict(reading) for reading in readings], indent=1) + "\n")


if __name__ == "__main__":
    main()
