"""Part 2: the tests of devices, kernels and parity that need a GPU, by pytest in a process of its own."""

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bench.gpu.job import Job, Json, Save

_ROOT = Path(__file__).parents[2]
_MOST_FAILURES = 20
_LINE = 300  # characters


def run(job: Job, save: Save) -> Json:
    """Run the tests. Raises RuntimeError when pytest wrote no report, and when time is up."""
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed")
    report = job.work / "tests.xml"
    chosen = [text for text in job.sizes.tests if not text.startswith("tests/") or (_ROOT / text).exists()]
    # Warnings of whatever versions are installed there are no failures of the project.
    options = [
        "-v",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        f"--junitxml={report}",
    ]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=max(1.0, job.left_s))
    except subprocess.TimeoutExpired as late:
        seen = (late.stdout or b"").decode(errors="replace")
        raise RuntimeError(f"not done after {late.timeout:.0f} s: {so_far(seen)}") from None
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode}: {done.stdout[-_LINE:]}{done.stderr[-_LINE:]}")
    return {"arguments": chosen, **counts(report)}


def so_far(output: str) -> str:
    """Read what pytest -v had said when it was ended; its last line names the test that ran."""
    last = (output.splitlines() or ["nothing"])[-1][:_LINE].strip()
    return f"{output.count(' PASSED')} passed, {output.count(' FAILED')} failed, at last {last}"


def counts(report: Path) -> Json:
    """Read how the tests of a JUnit report ended."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures, skips = [], []
    for case in cases:
        name = f"{case.get('classname')}.{case.get('name')}"
        for child in case:
            lines = (child.get("message") or child.text or "").splitlines() or [""]
            if child.tag in ("failure", "error"):
                failures.append(f"{name}: {lines[0][:_LINE]}")
            elif child.tag == "skipped":
                skips.append(f"{name}: {lines[0][:_LINE]}")
    return {
        "passed": len(cases) - len(failures) - len(skips),
        "failed": len(failures),
        "skipped": len(skips),
        "failures": failures[:_MOST_FAILURES],
        "why_skipped": sorted({skip.partition(": ")[2] for skip in skips}),
    }


def markdown(found: Json) -> list[str]:
    """A line, and one for each failure."""
    line = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
    lines = [f"{line} (`pytest {' '.join(found['arguments'])}`)", ""]
    lines += [f"- failed: {failure}" for failure in found["failures"]]
    lines += [f"- skipped: {why}" for why in found["why_skipped"]]
    return lines
