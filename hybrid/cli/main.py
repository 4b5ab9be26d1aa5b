"""The `hybrid` command: `run` (also `hybrid-run`), `plan`, `chat`, `tune` and `doctor`.

Standard output carries the result and nothing else; everything for people goes to standard error.
Whatever is slow to import is imported inside the commands.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hybrid.cli import options
from hybrid.cli.command_line import HELP_FLAGS, INTERRUPTED, Command, Group, invoke
from hybrid.cli.early_checks import check_early
from hybrid.cli.flag_values import (
    JSON,
    check_together,
    print_settings,
    run_settings,
    sampling_flags,
    shared_with,
    stats_file,
    without_effect,
)
from hybrid.errors import UsageError
from hybrid.loading.settings import DEMO_MODEL
from hybrid.show.console import check_writable, emit, note_between, prompt_text, say, tell_program, width
from hybrid.show.progress import ProgressLine
from hybrid.show.wrapping import fold

PROBLEMS = 1


def _read_config(context: typer.Context, name: str | None) -> str | None:
    """Let a settings file give the defaults; flags on the command line win."""
    if name is not None:
        from hybrid.cli.settings_file import find_settings, read_settings, settings_of

        known = settings_of(run) | settings_of(plan) | settings_of(chat)  # one file serves all commands
        settings = read_settings(find_settings(name), known)
        flags = {parameter.name: parameter.opts[0].removeprefix("--") for parameter in context.command.params}
        if ignored := [flag for flag in settings if flag not in flags.values()]:
            say(f"note: --config {name}: no effect on hybrid {context.command.name}: {', '.join(ignored)}")
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
        return print_settings(run, locals())
    if prompt is None and file is None and sys.stdin.isatty() and sys.stdout.isatty():
        if timeline is not None or op_times:
            raise UsageError("--timeline and --op-times look at the completion of a PROMPT; give one")
        return chat(**shared_with(chat, locals()))
    settings = run_settings(locals())
    text = prompt_text(prompt, file)
    flags = sampling_flags(locals())
    check_together(locals())
    stats_path = stats_file(stats)
    check_early(settings, flags, stop or (), chat_template)

    with ProgressLine(sys.stderr) as progress:
        from hybrid.cli.recording import start_recording, write_stats
        from hybrid.cli.run import Request, complete
        from hybrid.show import report
        from hybrid.show.disk_text import without_disk
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.text_model import open_text_model

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
        for note in (*text_model.tokenizer.notes, *text_model.defaults.notes):
            say(f"note: {note}")
        say(report.opening_lines(text_model.engine, cuda))
        planned = text_model.engine.plan
        for note in (*idle, *(() if verbose else without_disk(planned, planned.warnings))):
            say(f"note: {note}")
        text_model.engine.on_warning = note_between
        if verbose:
            say(report.plan_text(planned, cuda, width(sys.stderr)))
        taken: list[dict[str, Any]] = []
        on_stats = taken.append if stats_path else _tell_stats if stats else None
        finished = complete(text_model, request, recording, on_stats, stats != JSON, verbose)
        if stats_path is not None:
            write_stats(stats_path, taken)
        if op_times and recording is not None and stats != JSON:
            say(report.op_times_text(recording.op_times(), width(sys.stderr)).rstrip("\n"))
        if recording is not None:
            recording.write(text_model.engine.decoder.name)  # before the device closes: its part is read now
    return 0 if finished else INTERRUPTED


def _tell_stats(stats: dict[str, Any]) -> None:
    tell_program(json.dumps(stats))


def plan(
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
    allow_unused: options.AllowUnused = False,
    as_json: options.AsJson = False,
    draw: options.DrawFile = None,
    verbose: options.ShowLinears = False,
    config: Config = None,
    print_config: options.PrintConfig = False,
) -> int:
    """`hybrid plan`; gives the exit code."""
    if print_config:
        return print_settings(plan, locals())
    settings = run_settings(locals())
    check_early(settings)
    with ProgressLine(sys.stderr) as progress:
        from hybrid.loading.planning import make_plan
        from hybrid.loading.resolve import resolve_model
        from hybrid.show import report

        if draw is not None:
            from hybrid.show.picture_files import check_picture, write_plan_picture

            check_picture("--draw", draw)
        path = resolve_model(
            model,
            variant,
            config_only=True,
            allow_unused=allow_unused,
            on_stage=progress.on_stage,
            on_bytes=progress.on_bytes,
        )
        progress.on_stage("Planning", 0)
        made = make_plan(replace(settings, model=path))
    if as_json:
        emit(json.dumps(made.to_json(), indent=2) + "\n")
    else:
        text = report.plan_text(made, cuda, width(sys.stdout), each_linear=verbose)
        emit(fold(text, width(sys.stdout)) if sys.stdout.isatty() else text)
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
        return print_settings(chat, locals())
    flags = sampling_flags(locals())
    settings = run_settings(locals())
    check_early(settings, flags, stop or (), chat_template)
    with ProgressLine(sys.stderr) as progress:
        from hybrid.chat.opening import find_template, open_conversation
        from hybrid.chat.terminal import chat as talk
        from hybrid.show import report
        from hybrid.show.disk_text import without_disk
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.text_model import open_text_model

        text_model = open_text_model(settings, on_stage=progress.on_stage, on_bytes=progress.on_bytes)
    with text_model:
        engine, tokenizer = text_model.engine, text_model.tokenizer
        folder = engine.decoder.folder
        template, line = find_template(folder, tokenizer, chat_template)
        sampling = merge_sampling(text_model.defaults.sampling, **flags)
        conversation = open_conversation(
            engine, tokenizer, folder, template, sampling, max_tokens, tuple(stop or ()), system
        )
        say(report.opening_lines(engine, cuda))
        idle = without_effect(locals(), sampling.temperature)
        for note in (
            *tokenizer.notes,
            *text_model.defaults.notes,
            *idle,
            *without_disk(engine.plan, engine.plan.warnings),
        ):
            say(f"note: {note}")
        engine.on_warning = note_between
        say(line)
        return talk(conversation, engine.decoder.name)


def doctor(model: options.ModelToExamine = None, as_json: options.ReportAsJson = False) -> int:
    """`hybrid doctor`; gives the exit code."""
    with ProgressLine(sys.stderr, "Examining this machine"):
        from hybrid.doctor import examine, report_text

        found = examine(None if model is None else Path(model), os.environ)
    emit(json.dumps(found.to_json(), indent=2) + "\n" if as_json else report_text(found, width(sys.stdout)))
    return PROBLEMS if found.problems else 0


def tune(
    calibrate: options.Calibrate = False,
    out: options.ProfileOut = None,
    device: options.DeviceName = "auto",
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.ProfileAsJson = False,
) -> int:
    """`hybrid tune`; gives the exit code."""
    if not calibrate:
        raise UsageError("say what to tune: hybrid tune --calibrate measures this machine")

    from hybrid.machine.profiles import calibration_file, save_profile
    from hybrid.machine.threads import resolve_threads, threads_warning
    from hybrid.show.calibration_table import calibration_text
    from hybrid.tune.calibration import measure_machine

    if out is not None:
        if out.suffix != ".json":
            raise UsageError(f"--out {out}: must end in .json, or --machine does not take it for a file")
        check_writable("--out", out)
    folder = calibration_file("").parent if out is None else out.absolute().parent
    for warning in threads_warning(threads):
        say(f"note: {warning}")
    with ProgressLine(sys.stderr) as progress:
        made = measure_machine(device, resolve_threads(threads), folder, progress.on_share, force=force)
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


def _no_command(context: typer.Context, version: options.Version = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _application(**settings: Any) -> typer.Typer:
    context = {"help_option_names": list(HELP_FLAGS)}
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=context, **settings)


def _hybrid() -> typer.Typer:
    application = _application(cls=Group, help=options.HELP, epilog=options.EXAMPLES, invoke_without_command=True)
    application.callback()(_no_command)
    pages: dict[Callable[..., int], tuple[str, str]] = {
        run: (options.RUN_HELP, options.RUN_EXAMPLES),
        plan: (options.PLAN_HELP, options.PLAN_EXAMPLES),
        chat: (options.CHAT_HELP, options.CHAT_EXAMPLES),
        tune: (options.TUNE_HELP, options.TUNE_EXAMPLES),
        doctor: (options.DOCTOR_HELP, options.DOCTOR_EXAMPLES),
    }
    for command, (text, examples) in pages.items():
        short = text.partition("\n")[0]
        application.command(cls=Command, help=text, epilog=examples, short_help=short)(command)
    return application


def _hybrid_run() -> typer.Typer:
    application = _application()
    application.command(cls=Command, help=options.RUN_HELP, epilog=options.RUN_EXAMPLES)(run)
    return application


def main(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid` command; returns the exit code."""
    return invoke(_hybrid(), "hybrid", arguments)


def main_run(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid-run` command; returns the exit code."""
    return invoke(_hybrid_run(), options.PROGRAM, arguments)
