"""Run llama.cpp's `llama-bench` and read its JSON.

    python -m bench.peers.llama_bench --binary PATH --model model.gguf --threads 2 --prompt 128 --gen 32

The reading goes to stdout as one JSON line.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import peak_rss


class PeerError(Exception):
    """llama-bench failed or said something unexpected; the message is one line."""


@dataclass(frozen=True)
class LlamaBenchSettings:
    """The settings of a run. Counts are in tokens; a count of 0 leaves that test out, but not both."""

    binary: Path
    model: Path
    threads: int
    n_prompt: int = 0
    n_gen: int = 16
    depth: int = 0  # tokens already in the KV cache when either test starts; not part of its time
    repetitions: int = 3  # counted runs after llama-bench's own warm-up
    extra: tuple[str, ...] = ()  # further llama-bench flags, such as ("-fa", "off")

    def command(self) -> list[str]:
        """The command line."""
        options = {
            "-m": self.model, "-t": self.threads, "-p": self.n_prompt, "-n": self.n_gen, "-d": self.depth,
            "-r": self.repetitions, "-o": "json",
        }  # fmt: skip
        return [str(self.binary), *(str(word) for pair in options.items() for word in pair), *self.extra]


@dataclass(frozen=True)
class LlamaBenchResult:
    """Medians over the repetitions, in tokens/s (None: not run), and the peak memory of the whole process."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    peak_rss_bytes: int  # includes the model file's pages that were touched, as it is mapped
    model_type: str  # as llama.cpp names it, such as "llama 1B F16"
    model_bytes: int
    commit: str  # of llama.cpp


def run(settings: LlamaBenchSettings, timeout_s: float | None = None) -> LlamaBenchResult:
    """Run llama-bench once. Raises PeerError, and subprocess.TimeoutExpired after `timeout_s` seconds."""
    if not settings.model.is_file():
        raise PeerError(f"no model file {settings.model}")
    if settings.n_prompt + settings.n_gen == 0:
        raise PeerError("nothing to run: n_prompt and n_gen are both 0")
    try:
        done = peak_rss.run(settings.command(), timeout_s)
    except OSError as error:
        raise PeerError(str(error)) from error
    if done.status != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerError(f"llama-bench ended with status {done.status}: {last}")
    return parse(done.stdout, done.peak_rss_bytes)


def parse(text: str, peak_rss_bytes: int) -> LlamaBenchResult:
    """Read the JSON of one llama-bench run with one prefill test, one decode test, or one of each."""
    try:
        tests: list[dict[str, Any]] = json.loads(text)
        speeds = {bool(test["n_prompt"]): statistics.median(test["samples_ts"]) for test in tests}
        first = tests[0]
        return LlamaBenchResult(
            prefill_tokens_per_s=speeds.get(True),
            decode_tokens_per_s=speeds.get(False),
            peak_rss_bytes=peak_rss_bytes,
            model_type=str(first["model_type"]),
            model_bytes=int(first["model_size"]),
            commit=str(first["build_commit"]),
        )
    except (ValueError, KeyError, IndexError, TypeError, statistics.StatisticsError) as error:
        raise PeerError(f"cannot read llama-bench's JSON ({error!r}): {text[:80]!r}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.llama_bench", description="Run llama-bench.")
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=0, help="tokens to prefill (default 0: none)")
    parser.add_argument("--gen", type=int, default=16, help="tokens to decode (default 16)")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before either test")
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args(arguments)
    settings = LlamaBenchSettings(
        given.binary, given.model, given.threads, given.prompt, given.gen, given.depth, given.repetitions
    )
    try:
        print(json.dumps(dataclasses.asdict(run(settings))))
    except (PeerError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
