"""The page that `--help` prints: usage, what the command does, its flags in groups, examples."""

import textwrap
from typing import Any

from hybrid.cli.options import GROUPS, OTHER
from hybrid.show.wrapping import fold_command

_WIDEST, _NARROWEST = 100, 40
_NAME_CELLS = 26  # of the column with the flags
_FEWEST_COLUMNS_FOR_TWO = 72  # below, a flag stands above its explanation


def help_page(context: Any, columns: int) -> str:
    """The page of the command of a context of typer's, for a terminal of so many columns."""
    command, width = context.command, max(min(columns, _WIDEST), _NARROWEST)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    flags = [p for p in command.params if p.param_type_name == "option"]
    commands = getattr(command, "commands", {})
    usage = " ".join(["[FLAGS]", *(f"[{p.metavar}]" for p in arguments), *(["COMMAND ..."] if commands else [])])
    sections = [f"Usage: {context.command_path} {usage}", *_paragraphs(command.help or "", width)]
    sections.append(_section("Commands", [(name, sub.short_help) for name, sub in commands.items()], width))
    sections.append(_section("Prompt", [(p.metavar, p.help) for p in arguments], width))
    groups = {name: group for group, names in GROUPS.items() for name in names}
    for group in (*GROUPS, OTHER):
        entries = [
            (_name(flag), _explanation(flag)) for flag in flags if groups.get(max(flag.opts, key=len), OTHER) == group
        ]
        if group == OTHER:
            entries.append(("-h, --help", "Show this page."))
        sections.append(_section(group, entries, width))
    if command.epilog:
        examples = (fold_command(line, width, "  ") for line in command.epilog.splitlines())
        sections.append("\n".join(["Examples", *examples]))
    return "\n\n".join(section for section in sections if section)


def _paragraphs(text: str, width: int) -> list[str]:
    return [textwrap.fill(" ".join(part.split()), width, break_long_words=False) for part in text.split("\n\n")]


def _section(title: str, entries: list[tuple[str, str]], width: int) -> str:
    return "\n".join([title, *(_entry(name, text, width) for name, text in entries)]) if entries else ""


def _entry(name: str, text: str, width: int) -> str:
    two_columns = width >= _FEWEST_COLUMNS_FOR_TWO
    indent = " " * (_NAME_CELLS if two_columns else 6)
    lines = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    head = f"  {name}"
    if two_columns and lines and len(head) + 2 <= _NAME_CELLS:
        lines[0] = head.ljust(_NAME_CELLS) + lines[0].lstrip()
        return "\n".join(lines)
    return "\n".join([head, *lines])


def _name(flag: Any) -> str:
    names = ", ".join(sorted(flag.opts, key=len))
    return names if flag.is_flag else f"{names} {flag.metavar}"


def _explanation(flag: Any) -> str:
    default = flag.show_default if isinstance(flag.show_default, str) else flag.default
    is_told = isinstance(flag.show_default, str) or (not flag.is_flag and default is not None)
    return f"{flag.help} Default: {default}." if is_told else str(flag.help)
