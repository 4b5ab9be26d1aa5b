"""`hybrid run`, also `hybrid-run`: one prompt, completed."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hybrid.cli.chat import chat
from hybrid.cli.command_line import INTERRUPTED
from hybrid.cli.early_checks import check_early
from hybrid.cli.flag_values import run_settings, sampling_values, shaping_without_effect
from hybrid.cli.flags import ChatFlags, RunFlags
from hybrid.errors import ArgumentsError, UsageError
from hybrid.show.console import check_writable, note_between, prompt_text, say, tell_program, width
from hybrid.show.progress import ProgressLine

EXAMPLES = """\
hybrid-run "Once upon a time"
hybrid-run --model ~/models/mistral-7b --cuda 6 "The sky is blue because"
hybrid-run --cuda 80% --temperature 0.8 --seed 1 --max-tokens 500 - < prompt.txt
hybrid-run --model ~/models/mistral-7b --cuda 0 --ram 4 "Larger than RAM:"
hybrid-run --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --cuda 80% "Why is the sky blue?"
hybrid-run --temperature 1 --n 3 --stop "." "Once upon a time"
hybrid-run --stats stats.json "Once upon a time"
"""

_JSON = "json"  # what --stats writes to standard error


def run(flags: RunFlags) -> int:
    """Complete a prompt with a model that may be bigger than the GPU.

    The completion goes to standard output, everything else to standard error.
    """
    if flags.prompt is None and flags.file is None and sys.stdin.isatty() and sys.stdout.isatty():
        return _talk_instead(flags)
    settings = run_settings(flags)
    text = prompt_text(flags.prompt, flags.file)
    asked = sampling_values(flags)
    _check_together(flags)
    stats_path = _stats_file(flags.stats)
    stop = tuple(flags.stop or ())
    check_early(settings, asked, stop, flags.chat_template)

    with ProgressLine(sys.stderr) as progress:
        from hybrid.cli.completion import Request, complete
        from hybrid.cli.recording import start_recording, write_stats
        from hybrid.show import report
        from hybrid.show.disk_text import without_disk
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.text_model import open_text_model

        recording = start_recording(flags.timeline, flags.op_times)
        watched = recording.timeline if recording else None
        text_model = open_text_model(settings, flags.chat_template, False, progress, watched)
    with text_model:
        sampling = merge_sampling(text_model.defaults.sampling, **asked)
        if flags.beams > 1 and flags.temperature is None:
            sampling = replace(sampling, temperature=0.0)
        request = Request(
            text_model.prompt_ids(text, flags.raw),
            sampling,
            flags.max_tokens,
            stop,
            flags.n,
            flags.beams,
            flags.length_penalty,
        )
        for note in (*text_model.tokenizer.notes, *text_model.defaults.notes):
            say(f"note: {note}")
        say(report.opening_lines(text_model.engine, flags.cuda))
        planned = text_model.engine.plan
        idle = _without_effect(flags, sampling.temperature)
        for note in (*idle, *(() if flags.verbose else without_disk(planned, planned.warnings))):
            say(f"note: {note}")
        text_model.engine.on_warning = note_between
        if flags.verbose:
            say(report.plan_text(planned, flags.cuda, width(sys.stderr)))
        taken: list[dict[str, Any]] = []
        on_stats = taken.append if stats_path else _tell_stats if flags.stats else None
        summary = flags.stats != _JSON
        finished = complete(text_model, request, recording, on_stats, summary, flags.verbose)
        if stats_path is not None:
            write_stats(stats_path, taken)
        if recording is not None:
            if flags.op_times and summary:
                say(report.op_times_text(recording.op_times(), width(sys.stderr)).rstrip("\n"))
            recording.write(text_model.engine.decoder.name)  # before the device closes: its part is read now
    return 0 if finished else INTERRUPTED


def _talk_instead(flags: RunFlags) -> int:
    """On a terminal, without a prompt: chat with the flags that it shares."""
    if flags.timeline is not None or flags.op_times:
        raise UsageError("--timeline and --op-times look at the completion of a PROMPT; give one")
    shared = {field.name: getattr(flags, field.name) for field in fields(ChatFlags) if hasattr(flags, field.name)}
    return chat(ChatFlags(**shared))


def _check_together(flags: RunFlags) -> None:
    """Refuse flags that do not go together. Raises UsageError."""
    if flags.raw and flags.chat_template is not None:
        raise UsageError("--raw and --chat-template contradict each other; drop one of them")
    if flags.beams > 1 and flags.stats is not None:
        raise UsageError("--stats tells what sampling took; it does not go with --beams")
    if flags.beams > 1 and (flags.n > 1 or flags.temperature or flags.stop):
        raise UsageError("--beams searches for one likeliest text; it does not go with --n, --temperature or --stop")
    if flags.n > 1 and flags.temperature == 0:
        raise UsageError(f"--n {flags.n}: without a --temperature above 0 all completions would be the same")


def _stats_file(stats: str | None) -> Path | None:
    """The file that `--stats` names, if it names one. Raises UsageError where it could not be written in the end."""
    if stats is None or stats == _JSON:
        return None
    path = Path(stats).expanduser()
    if path.suffix.lower() != ".json":
        raise ArgumentsError(f"--stats {stats}: must be json, or a file whose name ends in .json")
    check_writable("--stats", path)
    return path


def _without_effect(flags: RunFlags, temperature: float) -> list[str]:
    lines = shaping_without_effect(flags, temperature)
    if flags.length_penalty != 1.0 and flags.beams == 1:
        lines.append("--length-penalty: no effect without --beams")
    return lines


def _tell_stats(stats: dict[str, Any]) -> None:
    tell_program(json.dumps(stats))
