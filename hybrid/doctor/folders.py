"""Folders that are written to: the Hugging Face cache and the compiled kernels."""

import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from hybrid.doctor.findings import Finding, note, ok, problem
from offload.compiled_code import NotKept, code_folder
from offload.spec.units import GIB, counted, format_bytes

_LITTLE_BYTES = 10 * GIB
_MOST_FILES = 20_000  # a cache on a slow disk is not worth waiting for


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where downloaded models are, by the rules of huggingface_hub."""
    if named := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(named, environment)
    if home := environment.get("HF_HOME"):
        return _expanded(home, environment) / "hub"
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache, environment) / "huggingface" / "hub"


def examine_hub_cache(folder: Path) -> list[Finding]:
    """How much is in the cache of models, and how much more fits. A cache that is not there yet is fine."""
    sizes = list(islice(_blob_sizes(folder), _MOST_FILES))
    about = "at least " if len(sizes) == _MOST_FILES else ""
    holds = f"{about}{format_bytes(sum(sizes))} in {counted(len(sizes), 'file')}" if sizes else "empty"
    if not writable(folder):
        return [problem(f"model cache {folder}: {holds}, cannot be written", "export HF_HOME=/a/folder/of/yours")]
    free_bytes = shutil.disk_usage(_existing(folder)).free
    text = f"model cache {folder}: {holds}, {format_bytes(free_bytes)} free on its disk"
    if free_bytes < _LITTLE_BYTES:
        return [note(f"{text}: little for a model; HF_HOME names a folder elsewhere")]
    return [ok(text)]


def examine_kernel_cache() -> list[Finding]:
    """Whether compiled kernels are kept."""
    try:
        return [ok(f"compiled kernels are kept in {code_folder('cpu')}")]
    except NotKept as reason:
        return [
            problem(
                f"compiled kernels are not kept, so each run compiles them anew: {reason}",
                "export XDG_CACHE_HOME=/a/folder/of/yours",
            )
        ]


def writable(folder: Path) -> bool:
    """Whether this process may write there, or make the folder. Nothing is written to find out."""
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
