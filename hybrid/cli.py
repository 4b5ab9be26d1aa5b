"""The `hybrid` command: `hybrid run` (also `hybrid-run`) and `hybrid plan`.

Standard output carries the result and nothing else; everything for people goes to standard error.
Whatever is slow to import is imported inside the commands.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.config import DEMO_MODEL, RunSettings
from hybrid.errors import OffloadError, TokenizerError, UsageError

if TYPE_CHECKING:
    from hybrid.model.decoder import Decoder
    from hybrid.text.generate import Generation
    from hybrid.text.tokenizer import Tokenizer, TextStream

PROGRAM = "hybrid-run"
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE

# The base of what typer raises for a wrong command line. Where it is defined differs from version to version.
CommandLineError: Any = typer.BadParameter.__bases__[0]

RUN_HELP = """Complete a prompt with a model that may be bigger than the GPU.

The completion goes to standard output, everything else to standard error.

\b
Examples:
  hybrid-run "Once upon a time"
  hybrid-run --model ~/models/mistral-7b --cuda 6 "The sky is blue because"
  hybrid-run --cuda 80% --temperature 0.8 --seed 1 --max-tokens 500 - < prompt.txt
  hybrid-run --cuda 0 --stats json "Hello" 2> stats.txt
"""

PLAN_HELP = """Show where the weights would go, and what a decode step would cost, without running anything.

\b
Examples:
  hybrid plan --model ~/models/mistral-7b --cuda 6
  hybrid plan --model ~/models/mistral-7b --cuda 4 --machine colab-t4 --json
"""

CUDA_HELP = """How much VRAM to use, context and libraries included: a number of GiB, fractions too (6, 2.5), \
with a unit (6GiB, 800MiB), a share of what is free (80%), auto, or 0 for none."""


class StatsFormat(StrEnum):
    """How `--stats` writes."""

    JSON = "json"


Model = Annotated[
    Path, typer.Option(metavar="DIR", help="Model folder.", show_default="the small demo model that comes along")
]
Cuda = Annotated[str | None, typer.Option(metavar="N", help=CUDA_HELP, show_default="auto")]
DeviceName = Annotated[str, typer.Option(metavar="NAME", help="auto, cuda, cuda:N (the N-th GPU), cpu or simulated.")]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Device profile to plan for: one that comes along, or a file.",
        show_default="one that suits the device",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Tokens to reserve the cache for.", show_default="chosen by the plan"),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="CPU threads.", show_default="the cores this process may use")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{PROGRAM} {version(PROGRAM)}")
        except PackageNotFoundError:
            print(f"{PROGRAM}, not installed (run from its source)")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
]


def run(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    model: Model = DEMO_MODEL,
    cuda: Cuda = None,
    device: DeviceName = "auto",
    machine: Machine = None,
    context: Context = None,
    threads: Threads = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float,
        typer.Option(metavar="T", help="0 always takes the likeliest token, so a run can be repeated; try 0.8 for variety."),
    ] = 0.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Choose among the K likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Choose among the likeliest tokens that together have probability P.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Repeats a text drawn with a temperature.", show_default="a new one")
    ] = None,
    stats: Annotated[
        StatsFormat | None, typer.Option(help="End with one line of JSON on standard error instead of the summary.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write what ran when, for ui.perfetto.dev.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show where each weight went.")] = False,
    version: Version = False,
) -> int:
    settings = RunSettings(model, cuda, device, machine, context, threads)
    if timeline is not None:
        _check_writable(timeline)
    text = _read_stdin() if prompt == "-" else prompt

    from hybrid import report
    from hybrid.runtime.engine import open_engine
    from hybrid.text.generate import generate
    from hybrid.text.sampling import SamplingSettings
    from hybrid.text.tokenizer import TextStream, load_tokenizer
    from offload.telemetry import Timeline

    sampling = SamplingSettings(temperature, top_k, top_p, seed)
    tokenizer = load_tokenizer(model)
    prompt_ids = tokenizer.encode(text)
    recorder = Timeline() if timeline is not None else None
    with report.loading_progress(sys.stderr) as (on_stage, on_bytes):
        engine = open_engine(settings, on_stage, on_bytes, recorder)
    with closing(engine):
        _check_vocabulary(prompt_ids, engine.decoder)
        _say(report.opening_line(engine.decoder, engine.plan, engine.context_tokens, cuda))
        if verbose:
            report.print_plan(engine.plan, cuda, sys.stderr)
        stop_ids = _stop_ids(engine.decoder, tokenizer)
        generation = generate(engine, prompt_ids, sampling, max_tokens, stop_ids)
        with _interrupt_stops(generation):
            _write_text(generation, TextStream(tokenizer, after=prompt_ids))
        memory = engine.memory()
    if recorder is not None and timeline is not None:
        _write_timeline(recorder, timeline)
    if stats is StatsFormat.JSON:
        _say(json.dumps(report.stats_json(generation, engine.plan, memory)))
    else:
        _say(report.closing_line(generation.stats, memory))
    return INTERRUPTED if generation.stats.stop_reason == "interrupted" else 0
