"""One repository of the Hugging Face hub: what is in it, and the files of it that are in the local cache.

The only importer of huggingface_hub, and late, for what is set: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, and the token.
It makes no request for us, but where it has to renew a token.
"""

import json
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from hybrid.errors import ModelFileError
from hybrid.progress import Progress
from hybrid.shown import listed, show
from hybrid.source.hub_download import Download
from hybrid.source.hub_errors import HubError, NoHub, Pause, Unreachable, explain, is_busy, reason, with_retries
from hybrid.source.hub_files import RepositoryFile
from hybrid.source.hub_http import HubClient
from hybrid.source.part_file import Checksum
from offload.small_files import UnreadableFileError, read_small_text
from offload.spec.units import counted, format_bytes

DEFAULT_REVISION = "main"

_REFERENCE_BYTES = 1 << 10  # a commit, and what may stand around it
_LISTING_BYTES = 1 << 23  # of 20,000 files, or more
_LISTING_S = 120.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


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
        """Give the folder in which the files lie by their names."""
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
            if _commit_of(reference) != self.commit:
                reference.parent.mkdir(parents=True, exist_ok=True)
                new = reference.with_name(f"{reference.name}.{secrets.token_hex(4)}.tmp")
                new.write_text(self.commit)
                new.replace(reference)


def look_up_in_cache(repository: str, revision: str) -> Snapshot | None:
    """A repository as far as it is in the cache; None where it is not. Raises ModelFileError for what is no name."""
    return _cached_snapshot(repository, revision, _cache_of(repository), "no request is made")


def look_up(repository: str, revision: str, pause: Pause = time.sleep) -> Snapshot:
    """Ask the hub for a repository's commit and files; without a network, the cache. Raises ModelFileError."""
    from huggingface_hub import constants

    cache = _cache_of(repository)
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    cached = _cached_snapshot(repository, revision, cache, why)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise ModelFileError(f"{repository}: not in the cache, {cache}, and HF_HUB_OFFLINE forbids to download it")
        return cached

    def ask() -> Snapshot:
        path = f"/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"  # with sizes and checksums
        with _client().get(path) as answer:
            if answer.nbytes is not None and answer.nbytes > _LISTING_BYTES:
                raise NoHub(f"its listing has {counted(answer.nbytes, 'byte')}")
            listing = b"".join(answer.pieces(_LISTING_BYTES + 1, _LISTING_S))
        return _read_listing(listing, repository, revision, cache)

    try:
        return ask() if cached is not None else with_retries(ask, is_busy, pause)
    except HubError as error:
        if cached is not None and (isinstance(error, Unreachable) or is_busy(error)):
            return cached
        raise ModelFileError(explain(error, constants.ENDPOINT, repository, revision)) from None


def fetch(
    snapshot: Snapshot,
    files: Sequence[RepositoryFile],
    progress: Progress,
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

    repository, cache, client = snapshot.repository, snapshot.cache, _client()
    downloads = [Download(client, cache, repository, snapshot.commit, file, progress.on_bytes) for file in missing]
    nbytes = sum(download.bytes_to_fetch for download in downloads)
    free_bytes = _free_bytes(cache)
    if nbytes > free_bytes:
        raise ModelFileError(
            f"{repository}: {format_bytes(nbytes)} to download, but {cache} has only "
            f"{format_bytes(free_bytes)} free; make room, or set HF_HOME to a folder on a larger disk"
        )
    progress.on_stage(f"Downloading {repository}", nbytes)
    for download in downloads:
        try:
            download.run(pause)
        except (HubError, OSError) as error:
            message = explain(error, constants.ENDPOINT, repository, snapshot.revision, download.file.name)
            raise ModelFileError(message) from None


def _client() -> HubClient:
    from huggingface_hub import constants, get_token

    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except (
        Exception
    ) as error:  # it may have to renew a token, by a network library that changes from version to version
        raise Unreachable(f"no token: {reason(error)}") from None
    return HubClient(constants.ENDPOINT, token)


def _cache_of(repository: str) -> Path:
    """The folder of a repository in the cache. Raises ModelFileError for what is no name."""
    from huggingface_hub import constants

    if "--" in repository or ".." in repository:  # the one would be another model's folder in the cache
        raise ModelFileError(f"{repository}: not a name that a model can have; expected org/name")
    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"


def _commit_of(reference: Path) -> str:
    """The commit that a file of the cache's `refs` names; "" where there is none."""
    try:
        commit = read_small_text(reference, _REFERENCE_BYTES).strip()
    except UnreadableFileError:
        return ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _cached_snapshot(repository: str, revision: str, cache: Path, offline: str) -> Snapshot | None:
    commit = revision if _COMMIT.fullmatch(revision) else _commit_of(cache / "refs" / revision)
    folder = cache / "snapshots" / commit
    if not commit or not folder.is_dir():
        return None
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [RepositoryFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    return Snapshot(repository, revision, commit, cache, {file.name: file for file in files}, offline)


def _read_listing(listing: bytes, repository: str, revision: str, cache: Path) -> Snapshot:
    """Read the hub's answer about a repository. Raises NoHub for what is none of its answers."""
    if len(listing) > _LISTING_BYTES:
        raise NoHub(f"its listing has more than {_LISTING_BYTES} bytes")
    try:
        answer = json.loads(listing)
        commit, siblings = answer["sha"], answer["siblings"]
        names = [str(sibling["rfilename"]) for sibling in siblings]
        files = [_listed_file(name, sibling) for name, sibling in zip(names, siblings, strict=True) if _is_plain(name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoHub(f"{type(error).__name__} in its listing") from None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise NoHub("it does not say at which commit it is")
    return Snapshot(repository, revision, commit, cache, _without_false_ids({file.name: file for file in files}))


def _listed_file(name: str, sibling: dict[str, Any]) -> RepositoryFile:
    """Raises ValueError, KeyError or TypeError for an entry that is none."""
    stored = sibling.get("lfs")
    nbytes = (stored or sibling)["size"]
    if not isinstance(nbytes, int) or not 0 <= nbytes < 1 << 62:
        raise ValueError("a size that is none")
    if stored:
        digest = str(stored.get("sha256"))
        return RepositoryFile(name, nbytes, Checksum("sha256", digest.lower()) if _SHA256.fullmatch(digest) else None)
    digest = str(sibling.get("blobId"))
    return RepositoryFile(name, nbytes, Checksum("git", digest) if _COMMIT.fullmatch(digest) else None)


def _without_false_ids(files: dict[str, RepositoryFile]) -> dict[str, RepositoryFile]:
    """Drop the ids of a hub that makes them up, known by one id for files of different sizes."""
    sizes = defaultdict(set)
    for file in files.values():
        if file.checksum is not None:
            sizes[file.checksum].add(file.nbytes)
    is_false = {checksum for checksum, found in sizes.items() if len(found) > 1}
    return {name: replace(file, checksum=None) if file.checksum in is_false else file for name, file in files.items()}


def _is_plain(name: str) -> bool:
    """Tell whether a name from a listing stays in its folder and can be shown."""
    path = PurePosixPath(name)
    inside = bool(path.name) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and name.isprintable()


def _free_bytes(folder: Path) -> int:
    """Measure the free bytes of the disk that a folder, there or not yet, lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
