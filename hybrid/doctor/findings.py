"""What an examination finds: a report of sections of findings. Plain data."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # worth knowing; everything still runs
    PROBLEM = "problem"  # something does not run, or runs far below what the machine can do


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
        return tuple(finding for finding in self._findings() if finding.level is Level.PROBLEM)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with stable keys in a stable order."""
        return {
            "problems": len(self.problems),
            "sections": [
                {
                    "title": section.title,
                    "findings": [
                        {"level": str(finding.level), "text": finding.text, "mend": finding.mend}
                        for finding in section.findings
                    ],
                }
                for section in self.sections
            ],
        }

    def _findings(self) -> Iterator[Finding]:
        for section in self.sections:
            yield from section.findings


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, one_line(text))


def note(text: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Level.NOTE, one_line(text), mend)


def problem(text: str, mend: str = "") -> Finding:
    """Wants something done; `mend` is the command that does it."""
    return Finding(Level.PROBLEM, one_line(text), mend)


def one_line(text: str) -> str:
    """Text on one line, without characters that a terminal would act on."""
    joined = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in joined)
