"""Make the job that a part of the GPU kit is given in tests."""

import time
from pathlib import Path

from bench.gpu.job import Job


def a_job(folder: Path, device: str) -> Job:
    return Job(device, "rehearsal", folder, folder, time.monotonic() + 60, "command", "commit")
