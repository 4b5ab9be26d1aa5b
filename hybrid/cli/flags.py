"""The flags of each command as a frozen dataclass, made of groups that several commands share.

A field is a flag, and its order is that on the help page; groups come in from the last base to the first.
"""

from dataclasses import dataclass
from typing import Annotated

import typer

from hybrid.cli import options
from hybrid.loading.settings import DEMO_MODEL
from hybrid.show.console import say


def _read_config(context: typer.Context, name: str | None) -> str | None:
    """Let a settings file give the defaults; flags on the command line win."""
    if name is not None:
        from hybrid.cli.settings_file import find_settings, read_settings, settings_of

        known = settings_of(RunFlags) | settings_of(PlanFlags) | settings_of(ChatFlags)  # one file serves all commands
        settings = read_settings(find_settings(name), known)
        flags = {parameter.name: parameter.opts[0].removeprefix("--") for parameter in context.command.params}
        if ignored := [flag for flag in settings if flag not in flags.values()]:
            say(f"note: --config {name}: no effect on hybrid {context.command.name}: {', '.join(ignored)}")
        context.default_map = {name: settings[flag] for name, flag in flags.items() if name and flag in settings}
    return name


@dataclass(frozen=True)
class ConfigFlags:
    """Settings from a file, and as a file."""

    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            callback=_read_config,
            is_eager=True,
            help="Take flags from a file, or a preset: colab-t4, gpu-6gb, gpu-8gb, gpu-12gb, gpu-24gb, cpu-only, "
            "ram-2gb.",
        ),
    ] = None
    print_config: options.PrintConfig = False


@dataclass(frozen=True)
class LoadFlags:
    """The model, where its weights and cache go, and as what: fields of `RunSettings`."""

    model: options.Model = str(DEMO_MODEL)
    variant: options.Variant = None
    cuda: options.Cuda = None
    device: options.DeviceName = "auto"
    machine: options.Machine = None
    context: options.Context = None
    threads: options.Threads = None
    ram: options.Ram = None
    kv_dtype: options.CacheType = None
    host_dtype: options.HostDtype = None
    allow_unused: options.AllowUnused = False


@dataclass(frozen=True)
class SamplingFlags:
    """The choice of tokens, and where a text ends."""

    max_tokens: options.MaxTokens = 256
    temperature: options.Temperature = None
    top_k: options.TopK = None
    top_p: options.TopP = None
    min_p: options.MinP = None
    typical_p: options.TypicalP = None
    repetition_penalty: options.RepetitionPenalty = None
    presence_penalty: options.PresencePenalty = None
    frequency_penalty: options.FrequencyPenalty = None
    logit_bias: options.LogitBias = None
    seed: options.Seed = None
    stop: options.Stop = None


@dataclass(frozen=True)
class PromptFlags:
    """The text to complete."""

    prompt: options.Prompt = None
    file: options.PromptFile = None


@dataclass(frozen=True)
class RunFlags(ConfigFlags, SamplingFlags, LoadFlags, PromptFlags):
    """The flags of `hybrid run`."""

    activations: options.Activations = None
    n: options.Count = 1
    beams: options.Beams = 1
    length_penalty: options.LengthPenalty = 1.0
    raw: options.Raw = False
    chat_template: options.TemplateName = None
    stats: options.Stats = None
    timeline: options.TimelineFile = None
    op_times: options.OpTimes = False
    verbose: options.ShowPlacement = False
    version: options.Version = False


@dataclass(frozen=True)
class PlanFlags(ConfigFlags, LoadFlags):
    """The flags of `hybrid plan`."""

    as_json: options.AsJson = False
    draw: options.DrawFile = None
    verbose: options.ShowLinears = False


@dataclass(frozen=True)
class ChatFlags(ConfigFlags, SamplingFlags, LoadFlags):
    """The flags of `hybrid chat`."""

    activations: options.Activations = None
    max_tokens: options.MaxTokens = 1024  # a reply is longer than a completion
    chat_template: options.TemplateName = None
    system: options.System = None


@dataclass(frozen=True)
class TuneFlags:
    """The flags of `hybrid tune`."""

    calibrate: options.Calibrate = False
    out: options.ProfileOut = None
    device: options.DeviceName = "auto"
    threads: options.Threads = None
    force: options.Force = False
    as_json: options.ProfileAsJson = False


@dataclass(frozen=True)
class DoctorFlags:
    """The flags of `hybrid doctor`."""

    model: options.ModelToExamine = None
    as_json: options.ReportAsJson = False
