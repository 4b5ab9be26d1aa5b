"""The CPU: its name, the instructions our kernels want, and the cores this process may use."""

import os
import platform
from collections.abc import Collection
from pathlib import Path

from hybrid.doctor.findings import Finding, note, ok
from hybrid.machine.cgroups import CgroupLimits
from hybrid.machine.threads import default_threads
from offload.spec.units import counted

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
    name, flags = read_cpuinfo(root)
    return [_features(name, flags), _cores(limits)]


def read_cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
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
