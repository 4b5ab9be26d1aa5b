"""Run the parts one after the other within a time budget, and write what they found after each."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu.job import Job, Json, write_json, write_text
from bench.gpu.part import NO_DEVICE, to_argument
from bench.gpu.report import report

_ROOT = Path(__file__).parents[2]
_LONGER_S = 5.0  # than its deadline a part may take before it is ended


@dataclass(frozen=True)
class Part:
    """A module of this package with `run` and `markdown`, and the seconds that parts before it leave it."""

    name: str
    title: str
    seconds: float


# What a part does not need is there for those after it, so the order is that of their worth.
PARTS = (
    Part("environment", "Environment", 20),
    Part("tests", "Tests on the device", 75),
    Part("rates", "Rates", 75),
    Part("kernels", "Kernels", 50),
    Part("overlap", "Overlap", 40),
    Part("speed", "Speed", 180),
    Part("cap", "VRAM within the budget", 5),
    Part("timeline", "Timeline", 25),
)


class NoDevice(Exception):
    """The GPU that was asked for cannot be used; the message is one line."""


def run_parts(device: str, size: str, out: Path, work: Path, seconds: float, command: str, commit: str) -> Json:
    """Run all parts; gives what gpu.json has. Raises NoDevice."""
    _stand_in()
    ends_s = time.monotonic() + seconds
    results: Json = {
        "modelled": device == "simulated",
        "size": size,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "parts": {},
    }
    for number, part in enumerate(PARTS):
        reserved_s = sum(later.seconds for later in PARTS[number + 1 :])
        deadline_s = ends_s - reserved_s * min(1.0, seconds / sum(part.seconds for part in PARTS))
        job = Job(device, size, out, work, deadline_s, command, commit)
        _say(f"{number + 1}/{len(PARTS)} {part.title}, at most {max(0, job.left_s):.0f} s")
        results["parts"][part.name] = {"title": part.title, **_run(part, job)}
        _write(results, out)
    _draw(results, out)
    _write(results, out)
    return results


def _run(part: Part, job: Job) -> Json:
    """Run a part; give how it ended, and what it found until then."""
    began_s = time.monotonic()
    limit_s = max(1.0, job.left_s + _LONGER_S)
    command = [sys.executable, "-m", "bench.gpu.part", part.name, to_argument(job)]
    code = _run_within(limit_s, command)
    found = job.found(part.name)
    error = found.pop("error", "")
    if code == NO_DEVICE and part is PARTS[0]:
        raise NoDevice(error.partition(": ")[2])
    status = "done"
    if code is None:
        status = f"failed: not done after {limit_s:.0f} s, and ended"
    elif code:
        status = f"failed: {error or f'the process ended with status {code}'}"
    return {"status": status, "seconds": round(time.monotonic() - began_s, 1), "found": found}


def _run_within(limit_s: float, command: list[str]) -> int | None:
    """The exit status; None when time was up, and then the process and all it started are gone."""
    child = subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr, start_new_session=True)
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _stand_in() -> None:
    """Put a stand-in for threadpoolctl where it is missing, here and in all parts; BLAS gets one thread."""
    if importlib.util.find_spec("threadpoolctl") is None:
        folder = str(Path(__file__).parent / "stand_ins")
        sys.path.append(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _draw(results: Json, out: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        results["pictures"] = "none: matplotlib is not installed"
        return
    from bench.gpu.plots import draw

    results["pictures"] = draw(results, out)


def _write(results: Json, out: Path) -> None:
    write_json(out / "gpu.json", results)
    write_text(out / "gpu.md", report(results))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
