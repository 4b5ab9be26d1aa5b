"""A report for people, as plain text."""

import textwrap

from hybrid.doctor.findings import Finding, Level, Report
from offload.printable import printable
from offload.spec.units import counted

_MARKS = {Level.OK: "", Level.NOTE: "note: ", Level.PROBLEM: "PROBLEM: "}
_INDENT = "    "
_NARROWEST = 40


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
