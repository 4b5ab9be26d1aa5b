"""The report of an examination: sections of findings, as data and as text."""

import textwrap
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from offload.printable import printable
from offload.spec.units import counted

_INDENT = "    "
_NARROWEST = 40


class Level(StrEnum):
    """The weight of a finding."""

    OK = "ok"
    NOTE = "note"  # worth knowing; everything still runs
    PROBLEM = "problem"  # something does not run, or runs far below what the machine can do


_MARKS = {Level.OK: "", Level.NOTE: "note: ", Level.PROBLEM: "PROBLEM: "}


@dataclass(frozen=True)
class Finding:
    """One line about one thing, and the command that mends it; empty where there is no such command."""

    level: Level
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Section:
    """The findings about one part of the machine."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    sections: tuple[Section, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that want something done."""
        findings = (finding for section in self.sections for finding in section.findings)
        return tuple(finding for finding in findings if finding.level is Level.PROBLEM)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with stable keys in a stable order."""
        return {"problems": len(self.problems), "sections": [asdict(section) for section in self.sections]}


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, _one_line(text))


def note(text: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Level.NOTE, _one_line(text), mend)


def problem(text: str, mend: str = "") -> Finding:
    """Wants something done; `mend` is the command that does it."""
    return Finding(Level.PROBLEM, _one_line(text), mend)


def report_text(report: Report, width: int = 100) -> str:
    """The report in sections. Commands stand on lines of their own and are never broken, to be copied."""
    lines: list[str] = []
    for section in report.sections:
        lines += [section.title, *(line for finding in section.findings for line in _finding_lines(finding, width)), ""]
    count = len(report.problems)
    lines.append(f"{counted(count, 'problem')}." if count else "No problems found.")
    return printable("\n".join(lines)) + "\n"


def _finding_lines(finding: Finding, width: int) -> list[str]:
    wrapped = textwrap.wrap(
        finding.text,
        max(width, _NARROWEST),
        initial_indent="  " + _MARKS[finding.level],
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*wrapped, *([f"{_INDENT}mend: {finding.mend}"] if finding.mend else [])]


def _one_line(text: str) -> str:
    """Text on one line, without characters that a terminal would act on."""
    joined = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in joined)
