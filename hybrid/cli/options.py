"""The flags of the `hybrid` command, one by one: their types and help texts. `hybrid.cli.flags` says who has them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

PROGRAM = "hybrid-run"

OTHER = "Other"  # flags that are in no group
GROUPS = {  # of flags, as --help shows them
    "Model": ("--model", "--variant", "--allow-unused", "--file", "--chat-template", "--raw", "--system"),
    "Placement": (
        "--cuda", "--ram", "--device", "--machine", "--threads", "--context", "--kv-dtype", "--host-dtype",
        "--activations",
    ),
    "Sampling": (
        "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--typical-p", "--repetition-penalty",
        "--presence-penalty", "--frequency-penalty", "--logit-bias", "--seed", "--stop", "--n", "--beams",
        "--length-penalty",
    ),
    "Output": ("--verbose", "--stats", "--op-times", "--timeline", "--draw", "--json", "--out"),
}  # fmt: skip

CUDA_HELP = (
    "How much VRAM to use, context and libraries included: GiB, fractions too (6, 2.5), with a unit "
    "(6GiB, 800MiB), a share of the GPU's memory (80%), auto, or 0 for none."
)

RAM_HELP = (
    "The most RAM to use, everything included, written like --cuda (4, 800MiB, 50%, auto). Weights beyond it stay "
    "in their files and are read at every step."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{PROGRAM} {version(PROGRAM)}")
        except PackageNotFoundError:
            print(f"{PROGRAM}, not installed (run from its source)")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


class KvDtype(StrEnum):
    """The values of `--kv-dtype`."""

    FP16 = "fp16"
    FP32 = "fp32"


Model = Annotated[
    str,
    typer.Option(
        metavar="DIR|NAME",
        help="Model folder, .onnx file, or a name on the Hugging Face hub (org/name, org/name@revision).",
        show_default="the bundled demo model",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which of several ONNX precisions: fp16, q4, ...", show_default="the only one"),
]
Cuda = Annotated[str | None, typer.Option(metavar="N", help=CUDA_HELP, show_default="auto")]
Ram = Annotated[str | None, typer.Option(metavar="N", help=RAM_HELP, show_default="80% of what is available")]
DeviceName = Annotated[str, typer.Option(metavar="NAME", help="auto, cuda, cuda:N, cpu or simulated.")]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Device profile to plan with: a bundled or a measured one, or a file.",
        show_default="what was measured here, else one that suits the device",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Tokens the cache can hold.", show_default="2048, or all that the model knows"
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads.", show_default="physical cores it may use"),
]
CacheType = Annotated[
    KvDtype | None,
    typer.Option(
        "--kv-dtype",
        metavar="fp16|fp32",
        help="How the cache keeps keys and values.",
        show_default="as the model's graph has it",
    ),
]
HostDtype = Annotated[
    str | None,
    typer.Option(
        metavar="int8|int4",
        help="Quantise what the CPU multiplies while loading: half or a quarter of fp16's RAM and time, a little less "
        "exact.",
        show_default="as the model stores it",
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        metavar="int8|float",
        help="What int8 and int4 weights multiply: activations rounded to int8 (fast), or as they are.",
        show_default="as the model says; int8 with --host-dtype",
    ),
]
AllowUnused = Annotated[
    bool,
    typer.Option(
        "--allow-unused", help="Run a model although its class is not known, or tensors are left over: without them."
    ),
]


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to answer or go on from; - reads it from standard input."),
]
PromptFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Read the prompt from a file.")]
MaxTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens to generate.")]
_MODELS_OWN = "as the model recommends"
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="0 always takes the likeliest token: the same text each time. Try 0.8.",
        show_default="as the model recommends, else 0",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(metavar="K", help="Draw from the K likeliest tokens; 0: from all.", show_default=_MODELS_OWN),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P", help="Draw from the likeliest tokens that make up this probability.", show_default=_MODELS_OWN
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P", help="Leave out tokens below this share of the likeliest one's.", show_default=_MODELS_OWN
    ),
]
TypicalP = Annotated[
    float | None,
    typer.Option(metavar="P", help="Draw from the most typical tokens that make this up.", show_default=_MODELS_OWN),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(metavar="R", help="Above 1: make tokens of prompt and text less likely.", show_default=_MODELS_OWN),
]
PresencePenalty = Annotated[
    float | None, typer.Option(metavar="R", help="Subtracted once from logits of tokens in the text.", show_default="0")
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(metavar="R", help="Subtracted for each time a token is in the text.", show_default="0"),
]
LogitBias = Annotated[
    list[str] | None, typer.Option(metavar="ID=BIAS", help="Added to the logit of a token id; may be repeated.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Repeats what was drawn.", show_default="a new one")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.")]
Count = Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many completions.")]
Beams = Annotated[int, typer.Option(metavar="N", min=1, help="Search with N beams for the likeliest text.")]
LengthPenalty = Annotated[
    float, typer.Option(metavar="R", help="For --beams: above 0 favours long texts, below 0 short ones.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the model's chat template.")]
TemplateName = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME|FILE.jinja",
        help="chatml, llama-2, llama-3, mistral, zephyr, one of the model's, or a file.",
        show_default="the model's own, if any",
    ),
]
Stats = Annotated[
    str | None,
    typer.Option(
        metavar="json|FILE.json",
        help="Write what the run took as JSON: into a file, or with json as the last line of standard error, "
        "instead of the summary.",
    ),
]
TimelineFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json|FILE.png", help="Write what ran when: .json for ui.perfetto.dev, .png draws one decode step."
    ),
]
OpTimes = Annotated[bool, typer.Option("--op-times", help="Show which operators the decode steps spent their time in.")]
DrawFile = Annotated[
    Path | None, typer.Option("--draw", metavar="FILE.png", help="Also draw where each layer's weights go.")
]
ShowPlacement = Annotated[
    bool, typer.Option("--verbose", help="Show where each weight went, and what the GPU does meanwhile.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")]
ShowLinears = Annotated[bool, typer.Option("--verbose", help="Show each Linear and why it is there.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings that are in force as TOML, and do nothing else.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="How the model is to behave.")]
ModelToExamine = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="DIR|NAME", help="Also look at this model: what it is, would it fit. Downloads nothing."
    ),
]
ReportAsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]

Calibrate = Annotated[bool, typer.Option("--calibrate", help="Measure this machine; takes less than 30 s.")]
Force = Annotated[bool, typer.Option("--force", help="Measure also while other processes keep the CPUs busy.")]
ProfileOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.json",
        help="Where to save the profile; only --machine FILE.json uses it then.",
        show_default="with the user's settings, where every run finds it",
    ),
]
ProfileAsJson = Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")]
