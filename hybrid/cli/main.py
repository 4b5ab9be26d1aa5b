"""The `hybrid` command: `run` (also `hybrid-run`), `plan`, `chat`, `tune` and `doctor`.

Standard output carries the result and nothing else; everything for people goes to standard error.
Whatever is slow to import is imported inside the commands.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import typer

from hybrid.cli import chat, doctor, options, plan, run, tune
from hybrid.cli.command_line import HELP_FLAGS, Command, Group, invoke
from hybrid.cli.flags import ConfigFlags

HELP = "Run language models bigger than your GPU."

EXAMPLES = """\
hybrid run --model DIR --cuda 6 "Why is the sky blue?"
hybrid plan --model DIR --cuda 6
hybrid chat --help
"""


def _no_command(context: typer.Context, version: options.Version = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _application(**settings: Any) -> typer.Typer:
    context = {"help_option_names": list(HELP_FLAGS)}
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=context, **settings)


def _add(application: typer.Typer, command: Callable[[Any], int], examples: str) -> None:
    """Add a command that takes its flags as one of the classes in `hybrid.cli.flags`; its docstring is its help."""
    text = inspect.getdoc(command) or ""
    short = text.partition("\n")[0]
    register = application.command(command.__name__, cls=Command, help=text, epilog=examples, short_help=short)
    register(_with_parameters(command))


def _with_parameters(command: Callable[[Any], int]) -> Callable[..., int]:
    """The command as typer reads it: with a parameter for each flag. `--print-config` prints them instead."""
    flags_class = get_type_hints(command)["flags"]

    def call(**values: Any) -> int:
        flags = flags_class(**values)
        if isinstance(flags, ConfigFlags) and flags.print_config:
            from hybrid.cli.settings_file import print_settings

            return print_settings(flags)
        return command(flags)

    call.__signature__ = inspect.signature(flags_class)  # type: ignore[attr-defined]
    return call


def _hybrid() -> typer.Typer:
    application = _application(cls=Group, help=HELP, epilog=EXAMPLES, invoke_without_command=True)
    application.callback()(_no_command)
    _add(application, run.run, run.EXAMPLES)
    _add(application, plan.plan, plan.EXAMPLES)
    _add(application, chat.chat, chat.EXAMPLES)
    _add(application, tune.tune, tune.EXAMPLES)
    _add(application, doctor.doctor, doctor.EXAMPLES)
    return application


def _hybrid_run() -> typer.Typer:
    application = _application()
    _add(application, run.run, run.EXAMPLES)
    return application


def main(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid` command; returns the exit code."""
    return invoke(_hybrid(), "hybrid", arguments)


def main_run(arguments: Sequence[str] | None = None) -> int:
    """The `hybrid-run` command; returns the exit code."""
    return invoke(_hybrid_run(), options.PROGRAM, arguments)
