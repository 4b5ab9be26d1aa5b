"""The `hybrid` command: `run` (also `hybrid-run`), `plan`, `chat`, `tune` and `doctor`.

Standard output carries the result and nothing else; everything for people goes to standard error.
Whatever is slow to import is imported inside the commands.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hybrid import options
from hybrid.config import DEMO_MODEL
from hybrid.console import check_writable, emit, note_between, prompt_text, say, width
from hybrid.errors import OffloadError, UsageError
from hybrid.flag_values import run_settings, sampling_flags, shared_with, without_effect
from hybrid.progress import Progress
from hybrid.standard_streams import OutputLostError, prepare_streams

PROBLEMS, FAILED, INTERRUPTED, PIPE_CLOSED = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE

# The base of what typer raises for a wrong command line. Where it is defined differs from version to version.
CommandLineError: Any = typer.BadParameter.__bases__[0]


def _read_config(context: typer.Context, name: str | None) -> str | None:
    """Let a settings file give the defaults; flags on the command line win."""
    if name is not None:
        from hybrid.settings_file import find_settings, read_settings, settings_of

        known = settings_of(run) | settings_of(plan) | settings_of(chat)  # one file serves all commands
        settings = read_settings(find_settings(name), known)
        flags = {parameter.name: parameter.opts[0].removeprefix("--") for parameter in context.command.params}
        context.default_map = {name: settings[flag] for name, flag in flags.items() if name and flag in settings}
    return name


Config = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.toml",
        callback=_read_config,
        is_eager=True,
        help="Take flags from a file, or a preset: colab-t4, gpu-6gb, gpu-8gb, gpu-12gb, gpu-24gb, cpu-only, ram-2gb.",
    ),
]


def run(
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    model: options.Model = str(DEMO_MODEL),
    variant: options.Variant = None,
    cuda: options.Cuda = None,
    device: options.DeviceName = "auto",
    machine: options.Machine = None,
    context: options.Context = None,
    threads: options.Threads = None,
    ram: options.Ram = None,
    kv_dtype: options.CacheType = None,
    host_dtype: options.HostDtype = None,
    activations: options.Activations = None,
    allow_unused: options.AllowUnused = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical_p: options.TypicalP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    n: options.Count = 1,
    beams: options.Beams = 1,
    length_penalty: options.LengthPenalty = 1.0,
    raw: options.Raw = False,
    chat_template: options.TemplateName = None,
    stats: options.Stats = None,
    timeline: options.TimelineFile = None,
    op_times: options.OpTimes = False,
    verbose: options.ShowPlacement = False,
    config: Config = None,
    print_config: options.PrintConfig = False,
    version: options.Version = False,
) -> int:
    """`hybrid run`; gives the exit code."""
    if print_config:
        return _print_settings(run, locals())
    if prompt is None and file is None and sys.stdin.isatty() and sys.stdout.isatty():
        if timeline is not None or op_times:
            raise UsageError("--timeline and --op-times look at the completion of a PROMPT; give one")
        return chat(**shared_with(chat, locals()))
    settings = run_settings(locals())
    text = prompt_text(prompt, file)
    flags = sampling_flags(locals())
    if raw and chat_template is not None:
        raise UsageError("--raw and --chat-template contradict each other; drop one of them")
    if beams > 1 and stats is not None:
        raise UsageError("--stats tells what sampling took; it does not go with --beams")

    with Progress(sys.stderr) as progress:
        from hybrid import report
        from hybrid.completion import Request, complete
        from hybrid.recording import start_recording
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.sampling import SamplingSettings
        from hybrid.text.stop_words import StopWords
        from hybrid.text.text_model import open_text_model

        merge_sampling(SamplingSettings(), **flags)  # what cannot be is said before anything is loaded
        StopWords(stop or ())
        recording = start_recording(timeline, op_times)
        watched = recording.timeline if recording else None
        text_model = open_text_model(settings, chat_template, False, progress.on_stage, progress.on_bytes, watched)
    with text_model:
        sampling = merge_sampling(text_model.defaults.sampling, **flags)
        if beams > 1 and temperature is None:
            sampling = replace(sampling, temperature=0.0)
        idle = without_effect(locals(), sampling.temperature)
        request = Request(
            text_model.prompt_ids(text, raw), sampling, max_tokens, tuple(stop or ()), n, beams, length_penalty
        )
        for note in text_model.tokenizer.notes:
            say(f"note: {note}")
        say(report.opening_line(text_model.engine, cuda))
        for note in (*idle, *(() if verbose else text_model.engine.plan.warnings)):
            say(f"note: {note}")
        text_model.engine.on_warning = note_between
        if verbose:
            say(report.plan_text(text_model.engine.plan, cuda, width(sys.stderr)))
        finished = complete(text_model, request, recording, stats is options.StatsFormat.JSON, verbose)
        if op_times and recording is not None and stats is None:
            say(report.op_times_text(recording.op_times(), width(sys.stderr)).rstrip("\n"))
        if recording is not None:
            recording.write(text_model.engine.decoder.name)  # before the device closes: its part is read now
    return 0 if finished else INTERRUPTED


def plan(
    model: options.Model = str(DEMO_MODEL),
    variant: options.Variant = None,
    cuda: options.Cuda = None,
    device: options.DeviceName = "auto",
    machine: options.Machine = None,
    context: options.Context = None,
    ram: options.Ram = None,
    kv_dtype: options.CacheType = None,
    host_dtype: options.HostDtype = None,
    allow_unused: options.AllowUnused = False,
    as_json: options.AsJson = False,
    draw: options.DrawFile = None,
    verbose: options.ShowLinears = False,
    config: Config = None,
    print_config: options.PrintConfig = False,
) -> int:
    """`hybrid plan`; gives the exit code."""
    if print_config:
        return _print_settings(plan, locals())
    with Progress(sys.stderr) as progress:
        from hybrid import report
        from hybrid.model.hub import resolve_model
        from hybrid.runtime.planning import make_plan

        if draw is not None:
            from hybrid.drawing.files import check_picture, write_plan_picture

            check_picture("--draw", draw)
        path = resolve_model(model, variant, config_only=True, on_stage=progress.on_stage, on_bytes=progress.on_bytes)
        progress.on_stage("Planning", 0)
        made = make_plan(replace(run_settings(locals()), model=path))
    if as_json:
        emit(json.dumps(made.to_json(), indent=2) + "\n")
    else:
        emit(report.plan_text(made, cuda, width(sys.stdout), each_linear=verbose))
    if draw is not None:
        write_plan_picture(made, draw)
    return 0


def chat(
    model: options.Model = str(DEMO_MODEL),
    variant: options.Variant = None,
    cuda: options.Cuda = None,
    device: options.DeviceName = "auto",
    machine: options.Machine = None,
    context: options.Context = None,
    threads: options.Threads = None,
    ram: options.Ram = None,
    kv_dtype: options.CacheType = None,
    host_dtype: options.HostDtype = None,
    activations: options.Activations = None,
    allow_unused: options.AllowUnused = False,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical_p: options.TypicalP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    chat_template: options.TemplateName = None,
    system: options.System = None,
    config: Config = None,
    print_config: options.PrintConfig = False,
) -> int:
    """`hybrid chat`; gives the exit code."""
    if print_config:
        return _print_settings(chat, locals())
    flags = sampling_flags(locals())
    settings = run_settings(locals())

    with Progress(sys.stderr) as progress:
        from hybrid import report
        from hybrid.chat.opening import find_template, open_conversation
        from hybrid.chat.terminal import chat as talk
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.sampling import SamplingSettings
        from hybrid.text.stop_words import StopWords
        from hybrid.text.text_model import open_text_model

        merge_sampling(SamplingSettings(), **flags)  # what cannot be is said before anything is loaded
        StopWords(stop or ())
        text_model = open_text_model(settings, on_stage=progress.on_stage, on_bytes=progress.on_bytes)
    with text_model:
        engine, tokenizer = text_model.engine, text_model.tokenizer
        folder = engine.decoder.folder
        template, line = find_template(folder, tokenizer, chat_template)
        sampling = merge_sampling(text_model.defaults.sampling, **flags)
        conversation = open_conversation(
            engine, tokenizer, folder, template, sampling, max_tokens, tuple(stop or ()), system
        )
        say(report.opening_line(engine, cuda))
        for note in (*tokenizer.notes, *without_effect(locals(), sampling.temperature), *engine.plan.warnings):
            say(f"note: {note}")
        engine.on_warning = note_between
        say(line)
        return talk(conversation, engine.decoder.name)


def doctor(model: options.ModelToExamine = None, as_json: options.ReportAsJson = False) -> int:
    """`hybrid doctor`; gives the exit code."""
    with Progress(sys.stderr, "Examining this machine"):
        from hybrid.doctor.examination import examine
        from hybrid.doctor.text import report_text

        found = examine(None if model is None else Path(model), os.environ)
    emit(json.dumps(found.to_json(), indent=2) + "\n" if as_json else report_text(found, width(sys.stdout)))
    return PROBLEMS if found.problems else 0


def tune(
    calibrate: options.Calibrate = False,
    out: options.ProfileOut = None,
    device: options.DeviceName = "auto",
    threads: options.Threads = None,
    as_json: options.ProfileAsJson = False,
) -> int:
    """`hybrid tune`; gives the exit code."""
    if not calibrate:
        raise UsageError("say what to tune: hybrid tune --calibrate measures this machine")

    from hybrid.runtime.machines import calibration_file, save_profile
    from hybrid.runtime.threads import resolve_threads, threads_warning
    from hybrid.tune.calibration import measure_machine
    from hybrid.tune.table import calibration_text

    if out is not None:
        check_writable("--out", out)
    folder = calibration_file("").parent if out is None else out.absolute().parent
    for warning in threads_warning(threads):
        say(f"note: {warning}")
    with Progress(sys.stderr) as progress:
        made = measure_machine(device, resolve_threads(threads), folder, progress.on_share)
    path = out or calibration_file(made.profile.name)
    save_profile(made.profile, path)
    if as_json:
        emit(json.dumps(made.profile.to_json(), indent=2) + "\n")
    else:
        emit(calibration_text(made.profile, made.estimate, width(sys.stdout)))
    for note in made.notes:
        say(f"note: {note}")
    say(f"saved as {path}" + ("" if out is None and not made.profile.estimated else f"; --machine {path} uses it"))
    return 0


def _print_settings(command: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Print what is in force for the flags of a command."""
    from hybrid.settings_file import print_config, settings_of

    emit(print_config({flag: values[_parameter(flag)] for flag in settings_of(command) if _parameter(flag) in values}))
    return 0


def _parameter(flag: str) -> str:
    return "as_json" if flag == "json" else flag.replace("-", "_")


def _no_command(context: typer.Context, version: options.Version = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _application(**settings: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)


def _hybrid() -> typer.Typer:
    application = _application(help="Run language models bigger than your GPU.", invoke_without_command=True)
    application.callback()(_no_command)
    helps: dict[Callable[..., int], str] = {
        run: options.RUN_HELP,
        plan: options.PLAN_HELP,
        chat: options.CHAT_HELP,
        tune: options.TUNE_HELP,
        doctor: options.DOCTOR_HELP,
    }
    for command, text in helps.items():
        application.command(help=text, short_help=text.partition("\n")[0])(command)  # whole, not cut off with "..."
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
    """Run a command line on the standard streams; gives the exit code."""
    try:
        prepare_streams()
    except UsageError as error:
        return _fail(str(error))
    try:
        code = _run(application, name, arguments)
        sys.stdout.flush()  # now, while there is somebody to say that it cannot be
        return code
    except OutputLostError as error:
        return _fail(str(error.strerror))
    except BrokenPipeError:  # whoever read the text has seen enough
        return PIPE_CLOSED


def _run(application: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line. What a user can cause becomes one line; a bug of ours keeps its traceback."""
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


def _fail(message: str) -> int:
    say(f"{options.PROGRAM}: error: {' '.join(message.split())}")
    return FAILED
