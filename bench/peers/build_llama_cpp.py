"""Build llama.cpp's `llama-bench` from the sources inside the llama-cpp-python source distribution.

    python -m bench.peers.build_llama_cpp --out DIR

The last line on stdout is the path of the binary; progress goes to stderr.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

VERSION = "0.3.36"  # of llama-cpp-python; a pinned peer keeps readings comparable between days
TARGETS = ("llama-bench", "llama-quantize")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",  # one file per tool, free to be moved
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=ON",
    "-DLLAMA_OPENSSL=OFF",  # with it goes every download; there is no curl in this version
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
_STEP = re.compile(r"^\[\s*(\d+)(?:%|/(\d+))\]")  # make says [ 42%], ninja says [12/300]


class BuildError(Exception):
    """A step of the build failed; the message is one line and names the log."""


def download(version: str, out: Path) -> Path:
    """Fetch the sdist of llama-cpp-python `version` into `out` (about 77 MB); return the archive's path.

    An archive already there is used again. Raises BuildError when pip fails.
    """
    archive = out / f"llama_cpp_python-{version}.tar.gz"
    if archive.exists():
        return archive
    # The flag names this one package on purpose: with ":all:" pip would also compile the build tools it
    # needs to read the package's metadata, which takes minutes instead of seconds.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    command += ["--dest", str(out), f"llama-cpp-python=={version}"]
    _logged(command, out / "download.log", f"downloading llama-cpp-python {version}")
    if not archive.exists():
        raise BuildError(f"pip did not leave {archive.name} in {out}")
    return archive


def extract(archive: Path, out: Path) -> tuple[Path, str]:
    """Unpack vendor/llama.cpp of the sdist under `out`; return its folder and its git commit ("unknown")."""
    root = archive.name.removesuffix(".tar.gz")
    prefix, head = f"{root}/vendor/llama.cpp/", f"{root}/.git/modules/vendor/llama.cpp/HEAD"
    source, commit = out / "llama.cpp", "unknown"
    partial = out / "llama.cpp.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name == head and (text := tar.extractfile(member)) is not None:
                words = text.read().decode().split()
                commit = words[-1][:9] if words else commit
            elif member.name.startswith(prefix) and member.name != prefix + ".git":
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, partial, filter="data")
    if not (partial / "CMakeLists.txt").exists():
        raise BuildError(f"{archive.name} holds no vendor/llama.cpp")
    shutil.rmtree(source, ignore_errors=True)
    partial.rename(source)
    return source, commit


def build(source: Path, commit: str, out: Path, jobs: int) -> Path:
    """Configure and compile TARGETS into `out`/build/bin; return the path of llama-bench.

    Raises BuildError when cmake is missing or fails; the whole output is in `out`/build.log.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BuildError("cmake is not on PATH; install it (pip install cmake) together with a C++ compiler")
    folder, log = out / "build", out / "build.log"
    log.unlink(missing_ok=True)
    # Given by hand, or cmake would take the commit of whatever git repository `out` lies in.
    identity = [f"-DLLAMA_BUILD_COMMIT={commit}", "-DLLAMA_BUILD_NUMBER=0"]
    _logged([cmake, "-S", str(source), "-B", str(folder), *CMAKE_FLAGS, *identity], log, "configuring")
    _logged([cmake, "--build", str(folder), "-j", str(jobs), "--target", *TARGETS], log, "compiling")
    binary = folder / "bin" / "llama-bench"
    if not binary.exists():
        raise BuildError(f"the build left no {binary}; see {log}")
    return binary


def _logged(command: Sequence[str], log: Path, label: str) -> None:
    """Run `command` with its output in `log`, showing its own step counter as a bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with log.open("a") as file, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            if step := _STEP.match(line):
                progress.update(task, completed=int(step[1]), total=int(step[2] or 100))
        if child.wait() != 0:
            raise BuildError(f"{label} failed with exit status {child.returncode}; see {log}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.build_llama_cpp", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the download, sources and build")
    parser.add_argument("--version", default=VERSION, help=f"of llama-cpp-python (default {VERSION})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compiler processes at once")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        source, commit = extract(download(options.version, out), out)
        binary = build(source, commit, out, options.jobs)
    except (BuildError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(binary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
