"""This machine: its CPU and its rates, RAM, and the folders that are written to."""

import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from hybrid.doctor.report import Finding, note, ok, problem
from hybrid.machine.cgroups import CgroupLimits
from hybrid.machine.profiles import CALIBRATE, busy_warning, calibration, calibration_file, machine_name
from hybrid.machine.ram import Ram
from hybrid.machine.threads import default_threads
from hybrid.shown import show
from offload.compiled_code import NotKept, code_folder
from offload.spec.units import GIB, counted, format_bytes

_LITTLE_RAM_BYTES = 2 * GIB
_HUGE_PAGES = Path("sys/kernel/mm/transparent_hugepage/enabled")
_LITTLE_DISK_BYTES = 10 * GIB
_MOST_FILES = 20_000  # a cache on a slow disk is not worth waiting for
_SHOWN = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimdhp": "NEON FP16",
    "asimddp": "NEON dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}


def examine_processor(limits: CgroupLimits, root: Path = Path("/")) -> list[Finding]:
    """Findings about the CPU. `root` is where proc is."""
    name, flags = _read_cpuinfo(root)
    return [_features(name, flags), _cores(limits)]


def examine_calibration(threads: int) -> Finding:
    """Tell whether runs with `threads` threads have measured rates to plan with."""
    path = calibration_file(machine_name())
    found = calibration(threads)
    if found.profile is not None and (warnings := busy_warning(found.profile)):
        return note(warnings[0], CALIBRATE)
    if found.profile is not None:
        return ok(f"plans use the rates that were measured on this machine: {show(path)}")
    why_not = f": {found.why_not}" if path.exists() else ""
    return note(f"predicted speeds rest on estimates until this machine is measured, in 30 s{why_not}", CALIBRATE)


def examine_memory(ram: Ram | None, limits: CgroupLimits, root: Path = Path("/")) -> list[Finding]:
    """Findings about RAM. `root` is where sys is."""
    if ram is None:
        return [note("RAM: the kernel does not tell how much there is")]
    text = f"RAM: {format_bytes(ram.available_bytes)} of {format_bytes(ram.total_bytes)} available"
    if limits.memory_bytes is not None and limits.memory_bytes <= ram.total_bytes:
        text += ", which is the control group's limit"
    short = ram.available_bytes < _LITTLE_RAM_BYTES
    finding = note(f"{text}: little; try --context 512 (hybrid run --config ram-2gb)") if short else ok(text)
    return [finding, *_huge_pages(root)]


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Locate the cache of downloaded models, by the rules of huggingface_hub."""
    if named := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(named, environment)
    if home := environment.get("HF_HOME"):
        return _expanded(home, environment) / "hub"
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache, environment) / "huggingface" / "hub"


def examine_hub_cache(folder: Path) -> list[Finding]:
    """Measure what is in the cache of models, and how much more fits. A cache that is not there yet is fine."""
    sizes = list(islice(_blob_sizes(folder), _MOST_FILES))
    about = "at least " if len(sizes) == _MOST_FILES else ""
    holds = f"{about}{format_bytes(sum(sizes))} in {counted(len(sizes), 'file')}" if sizes else "empty"
    if not _writable(folder):
        return [problem(f"model cache {folder}: {holds}, cannot be written", "export HF_HOME=/a/folder/of/yours")]
    free_bytes = shutil.disk_usage(_existing(folder)).free
    text = f"model cache {folder}: {holds}, {format_bytes(free_bytes)} free on its disk"
    if free_bytes < _LITTLE_DISK_BYTES:
        return [note(f"{text}: little for a model; HF_HOME names a folder elsewhere")]
    return [ok(text)]


def examine_kernel_cache() -> list[Finding]:
    """Tell whether compiled kernels are kept."""
    try:
        return [ok(f"compiled kernels are kept in {code_folder('cpu')}")]
    except NotKept as reason:
        return [
            problem(
                f"compiled kernels are not kept, so each run compiles them anew: {reason}",
                "export XDG_CACHE_HOME=/a/folder/of/yours",
            )
        ]


def _read_cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
    """The model name of the first CPU and its feature flags; empty where the kernel does not tell."""
    fields: dict[str, str] = {}
    try:
        text = (root / "proc" / "cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or platform.machine()
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _features(name: str, flags: Collection[str]) -> Finding:
    has = ", ".join(label for flag, label in _SHOWN.items() if flag in flags)
    if not flags:
        return note(f"{name}: the kernel does not tell its features")
    if "asimd" in flags:
        return ok(f"{name}: {has}")
    if "avx2" not in flags:
        return note(f"{name}: no AVX2, so kernels run at a fraction of the memory's rate")
    if "f16c" not in flags:
        return note(f"{name}: {has}; no F16C, so fp16 weights are converted slowly on the CPU")
    return ok(f"{name}: {has}")


def _cores(limits: CgroupLimits) -> Finding:
    machine, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    threads = default_threads()
    parts = [(f"{allowed} of " if allowed < machine else "") + counted(machine, "CPU")]
    if limits.cpus is not None:
        parts.append(f"a quota of {limits.cpus:.3g}")
    text = f"{', '.join(parts)}; --threads is {threads} unless given"
    if limits.cpus is not None and limits.cpus < threads:
        # Threads beyond the quota are stopped in turns, and each launch waits for the last of them.
        fitting = max(1, int(limits.cpus))
        return note(f"{text}, more than the quota: give --threads {fitting}") if fitting < threads else note(text)
    return ok(text)


def _huge_pages(root: Path) -> list[Finding]:
    """The kernel brackets what is chosen: "always [madvise] never"."""
    try:
        text = (root / _HUGE_PAGES).read_text()
    except OSError:
        return []
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        # One thread was measured to read 17 GB/s from small pages and 28 GB/s from huge ones.
        return [
            note(
                "transparent huge pages: never; one thread reads memory more slowly from small pages",
                f"echo madvise | sudo tee /{_HUGE_PAGES}",
            )
        ]
    return [ok(f"transparent huge pages: {chosen}")] if chosen else []


def _writable(folder: Path) -> bool:
    """Tell whether this process may write there, or make the folder. Nothing is written to find out."""
    existing = _existing(folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def _expanded(text: str, environment: Mapping[str, str]) -> Path:
    home = environment.get("HOME")
    if home and (text == "~" or text.startswith("~/")):
        return Path(home + text[1:]).absolute()
    return Path(text).expanduser().absolute()


def _blob_sizes(cache: Path) -> Iterator[int]:
    """Bytes of each file; names in `snapshots` are links to `blobs` and would count twice."""
    for blobs in cache.glob("models--*/blobs"):
        try:
            with os.scandir(blobs) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
