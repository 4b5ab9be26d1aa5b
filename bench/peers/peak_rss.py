"""Run a program and read its peak resident memory, untouched by the size of the caller.

On Linux a child starts with the peak of the process it was forked from, so wait4 called from a harness that
holds gigabytes would report those. This file is therefore also a small program, which stands in between:

    python peak_rss.py REPORT PROGRAM [ARGUMENT ...]
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# ru_maxrss counts KiB on Linux and bytes on macOS.
_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Finished:
    """A program that has ended: its output, exit status (negative: a signal), seconds and peak memory."""

    stdout: str
    stderr: str
    status: int
    wall_s: float
    peak_rss_bytes: int  # never below the stand-in's own few MB; mapped model files count once touched


def run(arguments: Sequence[str], timeout_s: float | None = None) -> Finished:
    """Run a program to its end. Raises OSError when it cannot be started, subprocess.TimeoutExpired."""
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        # -I -S: no site packages, so the stand-in stays small.
        launcher = [sys.executable, "-I", "-S", __file__, str(report), *arguments]
        start = time.perf_counter()
        child = subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
        except BaseException:  # Ctrl-C too: killing the stand-in alone would leave the program running
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise
        wall_s = time.perf_counter() - start
        if not report.exists():
            raise OSError(f"{arguments[0]} could not be started: {stderr.strip().rpartition(chr(10))[2]}")
        status, peak = map(int, report.read_text().split())
    return Finished(stdout, stderr, status, wall_s, peak * _UNIT_BYTES)


def _stand_in(report: str, program: Sequence[str]) -> None:
    child = os.posix_spawnp(program[0], list(program), os.environ)
    _, status, usage = os.wait4(child, 0)
    with open(report, "w") as file:
        file.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")


if __name__ == "__main__":
    _stand_in(sys.argv[1], sys.argv[2:])
