"""RAM: how much there is for this process, and in which pages it comes."""

from pathlib import Path

from hybrid.doctor.findings import Finding, note, ok
from hybrid.machine.cgroups import CgroupLimits
from hybrid.machine.ram import Ram
from offload.spec.units import GIB, format_bytes

_LITTLE_BYTES = 2 * GIB
_HUGE_PAGES = Path("sys/kernel/mm/transparent_hugepage/enabled")


def examine_memory(ram: Ram | None, limits: CgroupLimits, root: Path = Path("/")) -> list[Finding]:
    """Findings about RAM. `root` is where sys is."""
    if ram is None:
        return [note("RAM: the kernel does not tell how much there is")]
    text = f"RAM: {format_bytes(ram.available_bytes)} of {format_bytes(ram.total_bytes)} available"
    if limits.memory_bytes is not None and limits.memory_bytes <= ram.total_bytes:
        text += ", which is the control group's limit"
    short = ram.available_bytes < _LITTLE_BYTES
    finding = note(f"{text}: little; try --context 512 (hybrid run --config ram-2gb)") if short else ok(text)
    return [finding, *_huge_pages(root)]


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
