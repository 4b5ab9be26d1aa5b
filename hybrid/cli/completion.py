"""The completions of one prompt, on standard output; what they took, on standard error."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid.cli.recording import Recording
from hybrid.errors import UsageError
from hybrid.machine.cpu_load import cpu_times, others_load
from hybrid.show import report
from hybrid.show.console import can_redraw, ctrl_c_stops, emit, say, width
from hybrid.show.gpu_text import now_text, summary_text
from hybrid.show.progress import ProgressLine
from hybrid.show.status_line import StatusLine
from hybrid.show.truth import compare, slow_because
from hybrid.show.wrapping import WordWrap
from hybrid.text.beam import beam_search
from hybrid.text.detokenizer import TextStream
from hybrid.text.generate import Generation, StopReason, generate_several, text_of
from hybrid.text.sampling import SamplingSettings
from hybrid.text.stop_words import StopWords
from hybrid.text.text_model import TextModel
from offload.spec.units import counted

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine


_SHORT_S = 1.0  # what is over by then needs no progress


@dataclass(frozen=True)
class Request:
    """The text to generate. `beams` above 1 is a beam search, which sampling and `count` do not go with."""

    prompt_ids: list[int]
    sampling: SamplingSettings
    max_tokens: int
    stop: tuple[str, ...] = ()
    count: int = 1
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.count > 1 and self.sampling.temperature == 0:
            raise UsageError(f"--n {self.count}: without a --temperature above 0 all completions would be the same")


def complete(
    model: TextModel,
    request: Request,
    recording: Recording | None = None,
    on_stats: Callable[[dict[str, Any]], None] | None = None,
    summary: bool = True,
    verbose: bool = False,
) -> bool:
    """Write the completions, after each what it took; False when Ctrl-C ended them.

    `on_stats` is given what `report.stats_json` says of each; `summary` tells people; `verbose` watches a GPU at work.
    """
    if request.beams > 1:
        _search(model, request)
        return True
    finished = True
    generations = generate_several(
        model.engine, request.prompt_ids, request.sampling, request.max_tokens, model.stop_ids, request.count
    )
    for number, generation in enumerate(generations):
        if number:
            emit("\n")
        began = cpu_times()
        with ctrl_c_stops(generation), _live(model.engine, generation, verbose) as status:
            pieces = text_of(generation, TextStream(model.tokenizer, after=request.prompt_ids), StopWords(request.stop))
            _write(_updating(status, pieces if number else _after_prompt(model.engine, pieces)))
        truth = compare(generation.stats, model.engine)
        why = slow_because(truth, others_load(began, cpu_times()))
        memory = model.engine.memory()
        if on_stats is not None:
            times = recording.op_times() if recording and number == 0 else None
            on_stats(report.stats_json(generation, model.engine, memory, truth, times))
        if summary:
            say(report.closing_line(generation.stats, memory, truth, why))
            if verbose and model.engine.monitor is not None:
                say(summary_text(model.engine.monitor))
        if generation.stats.stop_reason is StopReason.INTERRUPTED:
            finished = False
            break
    return finished


def _live(engine: "Engine", generation: Generation, verbose: bool) -> AbstractContextManager[StatusLine | None]:
    """The line that shows a GPU at work."""
    monitor = engine.monitor
    if not verbose or monitor is None:
        return nullcontext()
    return StatusLine(
        sys.stderr, lambda: f"{report.rate(generation.stats.decode_tokens_per_s)} · {now_text(monitor.read())}"
    )


def _updating(status: StatusLine | None, pieces: Iterable[str]) -> Iterator[str]:
    """The pieces, with the line kept up to date in between."""
    for piece in pieces:
        yield piece
        if status is not None:
            status.update()


def _after_prompt(engine: "Engine", pieces: Iterator[str]) -> Iterator[str]:
    """The pieces; until the first of them comes, a terminal shows how much of the prompt has been read."""
    label = "Reading the prompt"
    with _waiting(label) as progress:
        if progress is not None:
            engine.on_read = lambda read, tokens: progress.on_share(label, read / tokens)
        first = next(pieces, "")
    yield first
    yield from pieces


def _waiting(label: str) -> AbstractContextManager[ProgressLine | None]:
    """Show on a terminal that something takes its time, where it does."""
    return ProgressLine(sys.stderr, label, after_s=_SHORT_S) if can_redraw(sys.stderr) else nullcontext()


def _search(model: TextModel, request: Request) -> None:
    with _waiting(f"Searching with {request.beams} beams"):
        best = model.engine.alone(
            lambda: beam_search(
                model.engine,
                request.prompt_ids,
                request.beams,
                request.max_tokens,
                model.stop_ids,
                request.length_penalty,
            )
        )[0]
    stream = TextStream(model.tokenizer, after=request.prompt_ids)
    _write([*(stream.feed(token_id) for token_id in best.token_ids), stream.flush()])
    tokens = counted(len(best.token_ids), "token")
    say(f"best of {request.beams} beams · {tokens} · log probability {best.log_probability:.2f}")


def _write(pieces: Iterable[str]) -> None:
    """Write pieces of text as they come, on a terminal broken at words, and end them with a newline."""
    last = ""
    try:
        for piece in _broken(pieces) if sys.stdout.isatty() else pieces:
            if piece:
                emit(piece)
                last = piece
    finally:  # an error message does not start in the middle of a line
        if last and not last.endswith("\n"):
            emit("\n")


def _broken(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces broken at words for the terminal, however wide it is at that moment."""
    wrap = WordWrap(lambda: width(sys.stdout))
    try:
        for piece in pieces:
            yield wrap.feed(piece)
    except (Exception, KeyboardInterrupt):
        yield wrap.flush()
        raise
    yield wrap.flush()
