"""The `hybrid` command: `hybrid run` (also `hybrid-run`) and `hybrid plan`.

Standard output carries the result and nothing else; everything for people goes to standard error.
Whatever is slow to import is imported inside the commands.
"""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hybrid import options
from hybrid.config import DEMO_MODEL, RunSettings
from hybrid.errors import OffloadError, UsageError

if TYPE_CHECKING:
    from hybrid.text.generate import Generation
    from hybrid.text.tokenizer import TextStream
    from offload.telemetry import Timeline

_TRACED_TOKENS = 8
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE

# The base of what typer raises for a wrong command line. Where it is defined differs from version to version.
CommandLineError: Any = typer.BadParameter.__bases__[0]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{options.PROGRAM} {version(options.PROGRAM)}")
        except PackageNotFoundError:
            print(f"{options.PROGRAM}, not installed (run from its source)")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


def run(
    prompt: options.Prompt,
    model: options.Model = DEMO_MODEL,
    cuda: options.Cuda = None,
    device: options.DeviceName = "auto",
    machine: options.Machine = None,
    context: options.Context = None,
    threads: options.Threads = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    stats: options.Stats = None,
    timeline: options.TimelineFile = None,
    verbose: options.ShowPlacement = False,
    version: Version = False,
) -> int:
    """`hybrid run`; gives the exit code."""
    settings = RunSettings(
        model=model, cuda=cuda, device=device, machine=machine, context_tokens=context, threads=threads
    )
    if timeline is not None:
        _check_writable(timeline)
    text = _read_stdin() if prompt == "-" else prompt

    from hybrid import report
    from hybrid.runtime.loading import open_engine
    from hybrid.text.sampling import SamplingSettings
    from hybrid.text.text_model import TextModel
    from hybrid.text.tokenizer import load_tokenizer
    from offload.telemetry import Timeline

    sampling = SamplingSettings(temperature, top_k, top_p, seed)
    tokenizer = load_tokenizer(model)
    recorder = Timeline() if timeline is not None else None
    with report.loading_progress(sys.stderr) as (on_stage, on_bytes):
        engine = open_engine(settings, on_stage, on_bytes, recorder)
    with TextModel(engine, tokenizer) as text_model:
        generation, stream = text_model.begin(text, sampling, max_tokens)
        _say(report.opening_line(engine, cuda))
        if verbose:
            _say(report.plan_text(engine.plan, cuda, _width(sys.stderr)))
        with _interrupt_stops(generation):
            _write_text(_traced(generation, recorder), stream)
        memory = engine.memory()
        if recorder is not None and timeline is not None:
            _write_timeline(recorder, timeline)  # before the device closes: its part is read now
    if stats is options.StatsFormat.JSON:
        _say(json.dumps(report.stats_json(generation, engine.plan, memory)))
    else:
        _say(report.closing_line(generation.stats, memory))
    return INTERRUPTED if generation.stats.stop_reason == "interrupted" else 0


def plan(
    model: options.Model = DEMO_MODEL,
    cuda: options.Cuda = None,
    device: options.DeviceName = "auto",
    machine: options.Machine = None,
    context: options.Context = None,
    as_json: options.AsJson = False,
    verbose: options.ShowLinears = False,
) -> int:
    """`hybrid plan`; gives the exit code."""
    settings = RunSettings(model=model, cuda=cuda, device=device, machine=machine, context_tokens=context)

    from hybrid import report
    from hybrid.runtime.planning import make_plan

    made = make_plan(settings)
    if as_json:
        _emit(json.dumps(made.to_json(), indent=2) + "\n")
    else:
        _emit(report.plan_text(made, cuda, _width(sys.stdout), each_linear=verbose))
    return 0


def _no_command(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _application(**settings: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)


def _hybrid() -> typer.Typer:
    application = _application(help="Run language models bigger than your GPU.", invoke_without_command=True)
    application.callback()(_no_command)
    application.command(help=options.RUN_HELP)(run)
    application.command(help=options.PLAN_HELP)(plan)
    return application


def _hybrid_run() -> typer.Typer:
    application = _application()
    application.command(help=options.RUN_HELP)(run)
    return application


def main(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid` command; returns the exit code."""
    return _invoke(_hybrid(), "hybrid", arguments)


def main_run(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid-run` command; returns the exit code."""
    return _invoke(_hybrid_run(), options.PROGRAM, arguments)


def _invoke(application: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line. What a user can cause becomes one line; a bug of ours keeps its traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" and goes on
    # Not through typer's own main, which prints errors in boxes and has its own mind about Ctrl-C and pipes.
    command = typer.main.get_command(application)
    try:
        with command.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as leave:
        return leave.exit_code
    except CommandLineError as error:
        command_path = error.ctx.command_path if error.ctx else name
        return _fail(f"{error.format_message().rstrip('.')}; see {command_path} --help")
    except OffloadError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the text has seen enough
        _discard(sys.stdout)
        _discard(sys.stderr)
        return PIPE_CLOSED


def _fail(message: str) -> int:
    _say(f"{options.PROGRAM}: error: {' '.join(message.split())}")
    return FAILED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _emit(text: str) -> None:
    """Write to standard output at once."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise UsageError(f"standard output cannot be written: {error.strerror}") from None


def _discard(stream: TextIO) -> None:
    """Send a stream nowhere: what it still buffers would fail again when Python closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _width(file: TextIO) -> int:
    """Columns to write tables in: the terminal's, or enough for them when it goes to a file."""
    return shutil.get_terminal_size().columns if file.isatty() else 120


def _read_stdin() -> str:
    """All of standard input, without the newline that ends it."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 at byte {error.start}") from None


def _check_writable(path: Path) -> None:
    """Refuse a file that could not be written at the end, before the work rather than after it."""
    new = not os.path.lexists(path)
    try:
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise _not_writable(path, error) from None


def _write_timeline(timeline: "Timeline", path: Path) -> None:
    try:
        timeline.write(path)
    except OSError as error:
        raise _not_writable(path, error) from None


def _not_writable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--timeline {path} cannot be written: {error.strerror}")


def _traced(ids: Iterable[int], timeline: "Timeline | None") -> Iterator[int]:
    """Token ids as they come; the timeline sees the first few steps, which are like all others."""
    for number, token_id in enumerate(ids):
        if timeline is not None and number == _TRACED_TOKENS:
            timeline.stop()
        yield token_id


def _write_text(ids: Iterable[int], stream: "TextStream") -> None:
    """Write the text of token ids as they come, and end it with a newline."""
    last = ""
    try:
        for token_id in ids:
            if text := stream.feed(token_id):
                _emit(text)
                last = text
    finally:  # an error message does not start in the middle of a line
        end = stream.flush()
        _emit(end + "\n" if (last + end) and not (last + end).endswith("\n") else end)


@contextmanager
def _interrupt_stops(generation: "Generation") -> Iterator[None]:
    """The first Ctrl-C ends the text after the step that runs; a second one ends the program."""

    def stop(signal_number: int, frame: object) -> None:
        generation.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
