"""One part of the kit, in a process of its own: `python -m bench.gpu.part NAME JOB`, JOB as JSON.

A part that crashes or hangs takes no other part with it. What it has found so far is in its file at any time.
Exits with 0 when all was measured, 3 when there is no such device, 1 for anything else; the reason is in the file.
"""

import importlib
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from bench.gpu.job import Job, write_json
from offload.errors import DeviceUnavailableError

NO_DEVICE = 3


def to_argument(job: Job) -> str:
    """A job as a command line has it."""
    return json.dumps(asdict(job) | {"out": str(job.out), "work": str(job.work)})


def main() -> int:
    """Run the part that the arguments name."""
    name, content = sys.argv[1], json.loads(sys.argv[2])
    job = Job(**(content | {"out": Path(content["out"]), "work": Path(content["work"])}))
    file = job.found_file(name)
    try:
        part = importlib.import_module(f"bench.gpu.{name}")
        write_json(file, part.run(job, lambda found: write_json(file, found)))
    except Exception as error:
        write_json(file, job.found(name) | {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        if isinstance(error, DeviceUnavailableError):
            return NO_DEVICE
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
