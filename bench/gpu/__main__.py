"""Prove the project on a GPU: `python -m bench.gpu --out DIR [--quick]`, less than 8 minutes.

Writes DIR/gpu.json, DIR/gpu.md and, where matplotlib is there, pictures. `--device simulated` is a rehearsal without
a GPU: everything in it is modelled.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from bench.gpu.run import NoDevice, run_parts


def main() -> int:
    """Run as the flags say."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="the smaller model and fewer points, about 3 minutes")
    parser.add_argument("--device", choices=("cuda", "simulated"), default="cuda")
    parser.add_argument("--seconds", type=float, default=470, help="all parts together are done by then")
    parser.add_argument("--work", type=Path, help="where models are written, 17 GB, and removed in the end")
    parser.add_argument("--commit", default="", help="the commit, where there is no .git")
    flags = parser.parse_args()
    size = "rehearsal" if flags.device == "simulated" else "quick" if flags.quick else "full"
    command = shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]])
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hybrid-gpu-", dir=flags.work) as work:
            run_parts(flags.device, size, flags.out.resolve(), Path(work), flags.seconds, command, flags.commit)
    except NoDevice as error:
        print(f"error: {error}; --device simulated rehearses without one", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(flags.out / "gpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
