"""`hybrid doctor`: what this machine and a model are like, what is wrong, and the commands that mend it."""

from hybrid.doctor.examination import examine
from hybrid.doctor.report import Finding, Level, Report, Section, report_text

__all__ = ["Finding", "Level", "Report", "Section", "examine", "report_text"]
