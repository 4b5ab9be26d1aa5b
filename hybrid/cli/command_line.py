"""Commands as people type them: help pages of our own, and errors that name what was meant."""

import difflib
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
import typer.core

from hybrid.cli.help_page import help_page
from hybrid.cli.standard_streams import OutputLostError, prepare_streams
from hybrid.errors import ArgumentsError, OffloadError, UsageError
from hybrid.show.console import say, say_bug

# The base of what typer raises for a wrong command line. Where it is defined differs from version to version.
CommandLineError: Any = typer.BadParameter.__bases__[0]

HELP_FLAGS = ("-h", "--help")
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE


def invoke(application: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line on the standard streams; gives the exit code."""
    try:
        prepare_streams()
    except UsageError as error:
        return _fail(str(error), name)
    sys.excepthook = say_bug
    try:
        code = _run(application, name, arguments)
        sys.stdout.flush()  # now, while there is somebody to say that it cannot be
        return code
    except OutputLostError as error:
        return _fail(str(error.strerror), name)
    except BrokenPipeError:  # whoever read the text has seen enough
        return PIPE_CLOSED


def _run(application: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line. What a user can cause becomes one line; a bug of ours keeps its traceback."""
    # Not through typer's own main, which prints errors in boxes and has its own mind about Ctrl-C and pipes.
    command = typer.main.get_command(application)
    context: Any = None
    try:
        with command.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as leave:
        return leave.exit_code
    except CommandLineError as error:
        path = error.ctx.command_path if error.ctx else name
        return _fail(f"{_problem(error)}; see {path} --help", path)
    except ArgumentsError as error:
        path = _typed(name, context)
        return _fail(f"{error}; see {path} --help", path)
    except OffloadError as error:
        return _fail(str(error), _typed(name, context))
    except KeyboardInterrupt:
        return INTERRUPTED


def _typed(name: str, context: Any) -> str:
    """The command that was typed: "hybrid-run", or "hybrid plan"."""
    return " ".join([name, *([context.invoked_subcommand] if context and context.invoked_subcommand else [])])


def _fail(message: str, typed: str) -> int:
    say(f"{typed}: error: {' '.join(message.split())}")
    return FAILED


class Command(typer.core.TyperCommand):
    """A command that says how to quote a prompt of several words."""

    def get_help(self, ctx: Any) -> str:
        return _page(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the flags of `args`; raises UsageError for arguments that this command does not take."""
        typed = list(args)
        ctx.allow_extra_args = True  # so that it is we who tell of them
        super().parse_args(ctx, args)
        if ctx.args:
            raise self._too_many(ctx, typed)
        return []

    def _too_many(self, ctx: Any, typed: Sequence[str]) -> Any:
        flags, words = _split(typed, self.params)
        if not any(parameter.param_type_name == "argument" for parameter in self.params):
            return CommandLineError(f"{ctx.command_path} takes flags only, not {_quoted(' '.join(words))}", ctx=ctx)
        quoted = " ".join([ctx.command_path, *map(_quoted, flags), _quoted(" ".join(words))])
        return UsageError(f"a prompt of several words has to be quoted: {quoted}")


class Group(typer.core.TyperGroup):
    """The commands of a program, with the nearest one where there is none of that name."""

    def get_help(self, ctx: Any) -> str:
        return _page(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, and what follows it."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise self._no_such(ctx, args)
        return super().resolve_command(ctx, args)

    def _no_such(self, ctx: Any, args: Sequence[str]) -> Any:
        if near := nearest(args[0], self.commands):
            return CommandLineError(f"no such command: {args[0]}; did you mean {near}?", ctx=ctx)
        flags, words = _split(args, self.commands["run"].params)
        if len(words) > 1 or " " in args[0]:
            meant = " ".join([ctx.command_path, "run", *map(_quoted, flags), _quoted(" ".join(words))])
            return UsageError(f"no such command: {_quoted(args[0])}; a prompt is for run: {meant}")
        return CommandLineError(f"no such command: {args[0]}", ctx=ctx)


def _problem(error: Any) -> str:
    """Say what is wrong with a command line, as one sentence without a full stop, with the name that may be meant."""
    message = error.format_message().rstrip(".")
    flag = getattr(error, "option_name", None)
    if not flag or not hasattr(error, "possibilities") or error.ctx is None:  # no NoSuchOption
        return str(message[:1].lower() + message[1:])
    command = error.ctx.command
    if near := nearest(flag, _flags(command)):
        return f"no such option: {flag}; did you mean {near}?"
    group = command if hasattr(command, "commands") else getattr(error.ctx.parent, "command", None)
    others = [name for name, other in getattr(group, "commands", {}).items() if flag in _flags(other)]
    return f"no such option: {flag}" + (f"; it is one of {_listed(others)}" if others else "")


def nearest(typed: str, names: Iterable[str]) -> str:
    """The name that was most likely meant, "" for none: one that begins so, else one that is spelt alike."""
    names = list(names)
    if len(begun := [name for name in names if len(typed.strip("-")) > 1 and name.startswith(typed)]) == 1:
        return begun[0]
    return next(iter(difflib.get_close_matches(typed, names, 1, 0.65)), "")


def _page(ctx: Any) -> str:
    import shutil

    return help_page(ctx, shutil.get_terminal_size().columns)


def _flags(command: Any) -> list[str]:
    return [*HELP_FLAGS, *(flag for parameter in command.params for flag in parameter.opts if flag.startswith("-"))]


def _split(typed: Sequence[str], parameters: Iterable[Any]) -> tuple[list[str], list[str]]:
    """The flags of a command line with their values, and the words that are neither."""
    valued = {flag for p in parameters if p.param_type_name == "option" and not p.is_flag for flag in p.opts}
    flags: list[str] = []
    words: list[str] = []
    rest = iter(typed)
    for word in rest:
        if word == "--":
            words += rest
        elif word.startswith("-") and word != "-":
            flags += [word, *([next(rest, "")] if word in valued else [])]
        else:
            words.append(word)
    return flags, words


def _quoted(word: str) -> str:
    """A word as a shell reads it back, in double quotes where that does."""
    plain = shlex.quote(word)
    return f'"{word}"' if plain != word and not set(word) & set('"\\$`!') else plain


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
