"""One repository of the Hugging Face hub: what is in it, and the files of it that are in the local cache.

The only importer of huggingface_hub, and late. That library reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE,
and defines the cache: `snapshots/<commit>/<name>` are links to `blobs/<checksum>`, so programs share their downloads.
It forgets the beginning of a file when its process ends; weights are fetched into a part here that is kept.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hybrid.errors import ModelFileError
from hybrid.model.hub_errors import Pause, explain, is_busy, is_passing, is_unreachable, with_retries
from hybrid.model.hub_files import RepositoryFile
from hybrid.model.part_file import file_sha256, open_locked
from hybrid.model.source import listed, show
from offload.units import format_bytes

DEFAULT_REVISION = "main"

_LOOK_UP_TIMEOUT_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit. `files` are all there are to have; when offline, those in the cache.

    `offline` says why no request is made, or is empty.
    """

    repository: str
    revision: str
    commit: str
    cache: Path
    files: dict[str, RepositoryFile]
    offline: str = ""

    @property
    def folder(self) -> Path:
        """Where the files lie by their names."""
        return self.cache / "snapshots" / self.commit

    @property
    def label(self) -> str:
        """The repository, for messages."""
        why = f" ({self.offline}, so only what is in {self.cache})" if self.offline else ""
        return self.repository + why

    def lacks(self, files: Sequence[RepositoryFile]) -> list[RepositoryFile]:
        """Those that are not in the cache yet."""
        return [file for file in files if not (self.folder / file.name).is_file()]

    def file(self, name: str) -> RepositoryFile:
        """A file that another one names. Raises ModelFileError when there is none to have."""
        if name in self.files:
            return self.files[name]
        hint = "not downloaded yet; run once with a network" if self.offline else "named by another file but not there"
        raise ModelFileError(f"{self.label}: {show(Path(name))} is {hint}")

    def remember(self, only_if_new: bool) -> None:
        """Let the revision's name lead to this commit when there is no network."""
        reference = self.cache / "refs" / self.revision
        if self.offline or self.revision == self.commit or (only_if_new and reference.exists()):
            return
        with suppress(OSError):  # a cache that is read-only serves this run as well
            if not reference.is_file() or reference.read_text() != self.commit:
                reference.parent.mkdir(parents=True, exist_ok=True)
                new = reference.with_name(f"{reference.name}.{secrets.token_hex(4)}.tmp")
                new.write_text(self.commit)
                new.replace(reference)


def look_up(repository: str, revision: str, pause: Pause = time.sleep) -> Snapshot:
    """Ask the hub for a repository's commit and files; without a network, the cache. Raises ModelFileError."""
    from huggingface_hub import HfApi, constants

    cache = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    cached = _cached_snapshot(repository, revision, cache, why)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise ModelFileError(f"{repository}: not in the cache, {cache}, and HF_HUB_OFFLINE forbids to download it")
        return cached

    def ask() -> Any:  # files_metadata: their sizes and checksums
        return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_LOOK_UP_TIMEOUT_S)

    try:
        info = ask() if cached is not None else with_retries(ask, is_busy, pause)
    except Exception as error:
        if cached is not None and (is_unreachable(error) or is_busy(error)):
            return cached
        message = explain(error, constants.ENDPOINT, repository, revision)
        if message is None:
            raise
        raise ModelFileError(message) from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ModelFileError(f"{repository}: {constants.ENDPOINT} does not say at which commit it is")
    files = [_listed_file(sibling) for sibling in info.siblings or []]
    return Snapshot(repository, revision, info.sha, cache, {file.name: file for file in files if _is_plain(file.name)})


def fetch(
    snapshot: Snapshot,
    files: Sequence[RepositoryFile],
    on_stage: Callable[[str, int], None],
    on_bytes: Callable[[int], None],
    pause: Pause = time.sleep,
) -> None:
    """Bring files into the cache, those that are not there. Raises ModelFileError, never leaves half a file."""
    missing = snapshot.lacks(files)
    if not missing:
        return
    if snapshot.offline:
        raise ModelFileError(
            f"{snapshot.label}: {listed([file.name for file in missing])} not downloaded yet; run once with a network"
        )
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()  # it warns of every broken connection that it mends
    downloads = [_Download(snapshot, file, on_bytes, pause) for file in missing]
    nbytes = sum(download.bytes_to_fetch for download in downloads)
    free_bytes = _free_bytes(snapshot.cache)
    if nbytes > free_bytes:
        raise ModelFileError(
            f"{snapshot.repository}: {format_bytes(nbytes)} to download, but {snapshot.cache} has only "
            f"{format_bytes(free_bytes)} free; make room, or set HF_HOME to a folder on a larger disk"
        )
    on_stage(f"Downloading {snapshot.repository}", nbytes)
    for download in downloads:
        try:
            with_retries(download.run, is_passing, pause, download.has_advanced)
        except Exception as error:
            message = explain(error, constants.ENDPOINT, snapshot.repository, snapshot.revision, download.file.name)
            if message is None:
                raise
            raise ModelFileError(message) from error


class _Download:
    """A file on its way into the cache."""

    def __init__(self, snapshot: Snapshot, file: RepositoryFile, on_bytes: Callable[[int], None], pause: Pause) -> None:
        from huggingface_hub import constants

        self.file = file
        self._snapshot = snapshot
        self._on_bytes = on_bytes
        self._name = file.sha256 or ""
        # Larger ones are not served over plain HTTP, and small ones are not worth a part.
        self._in_parts = file.sha256 is not None and file.nbytes <= constants.MAX_HTTP_DOWNLOAD_SIZE
        self._blob = snapshot.cache / "blobs" / self._name
        # Not the name that huggingface_hub uses, which appends under another lock.
        self._part = self._blob.with_name(f"{self._name}.hybrid.incomplete")
        self._seen_bytes = self._checked_bytes = self._present_bytes()

    @property
    def bytes_to_fetch(self) -> int:
        return max(0, self.file.nbytes - self._seen_bytes)

    def has_advanced(self) -> bool:
        """Whether bytes have come since this was asked last."""
        before, self._checked_bytes = self._checked_bytes, self._seen_bytes
        return self._seen_bytes > before

    def run(self) -> None:
        """Fetch what is missing, put it in its place."""
        if not self._in_parts:
            self._fetch_small()
            return
        if not self._blob.is_file():
            self._fetch_part()
        self._link()

    def _present_bytes(self) -> int:
        if not self._in_parts:
            return 0
        present = self._blob if self._blob.is_file() else self._part
        return min(present.stat().st_size, self.file.nbytes) if present.is_file() else 0

    def _fetch_small(self) -> None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(self._snapshot.repository, self.file.name, revision=self._snapshot.commit)
        self._reached(self.file.nbytes)

    def _fetch_part(self) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        self._part.parent.mkdir(parents=True, exist_ok=True)
        with open_locked(self._part, self._reached) as part:
            if self._blob.is_file():  # another process was faster
                self._part.unlink(missing_ok=True)
                return
            start = part.tell()
            if start > self.file.nbytes:
                start = part.empty()
            if start < self.file.nbytes:
                url = hf_hub_url(self._snapshot.repository, self.file.name, revision=self._snapshot.commit)
                http_get(url, part, resume_size=start, headers=build_hf_headers(), expected_size=self.file.nbytes)
            part.flush()
            if start and file_sha256(self._part) != self._name:
                part.empty()
                raise OSError("its checksum is wrong")
            self._part.replace(self._blob)

    def _link(self) -> None:
        link = self._snapshot.folder / self.file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)  # it led to a file that was deleted
        try:
            link.symlink_to(os.path.relpath(self._blob, link.parent))
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            self._blob.replace(link)

    def _reached(self, position: int) -> None:
        """Count bytes once, also when some are fetched again."""
        position = min(position, self.file.nbytes)
        if position > self._seen_bytes:
            self._on_bytes(position - self._seen_bytes)
            self._seen_bytes = position


def _cached_snapshot(repository: str, revision: str, cache: Path, offline: str) -> Snapshot | None:
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (cache / "refs" / revision).read_text().strip()
    except OSError:
        return None
    folder = cache / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [RepositoryFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    return Snapshot(repository, revision, commit, cache, {file.name: file for file in files}, offline)


def _listed_file(sibling: Any) -> RepositoryFile:
    stored = sibling.lfs
    nbytes = (stored.size if stored else sibling.size) or 0
    sha256 = str(stored.sha256) if stored else ""
    return RepositoryFile(sibling.rfilename, nbytes, sha256 if _SHA256.fullmatch(sha256) else None)


def _is_plain(name: str) -> bool:
    """Whether a name from a listing stays in its folder and can be shown."""
    path = PurePosixPath(name)
    inside = bool(path.name) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and name.isprintable()


def _free_bytes(folder: Path) -> int:
    """What the disk has left that a folder, there or not yet, lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
