"""Judges failures between us and a hub: whether to try again, and one line that says what to do.

HubError
├── Unreachable     the network failed, or the connection broke; another attempt may go better
│   └── TooSlow     so few bytes come that waiting is no use
├── Refused         an answer with a status that is none of success
├── NoHub           an answer that is not that of a hub, or breaks a bound
└── WrongBytes      a file whose bytes are not those that the hub lists
"""

import errno
from collections.abc import Callable
from typing import TypeVar

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)

Pause = Callable[[float], object]
Result = TypeVar("Result")

_BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class HubError(Exception):
    """Base of what a hub, or the network before it, does wrong. Its text is printable."""


class Unreachable(HubError):
    """The network failed, or the connection broke."""


class TooSlow(Unreachable):
    """An answer that comes too slowly, or not at all."""


class Refused(HubError):
    """A status that is none of success; `code` is what the hub calls its reason, if it does."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.code = code


class NoHub(HubError):
    """An answer that no hub gives, or that breaks a bound."""


class WrongBytes(HubError):
    """Bytes that are not the listed ones. `continued`: some were of an earlier attempt, so that another may do."""

    def __init__(self, continued: bool) -> None:
        super().__init__("wrong checksum")
        self.continued = continued


def explain(error: HubError | OSError, endpoint: str, repository: str, revision: str, file: str = "") -> str:
    """The line for an error; `file` is the one that was being downloaded, if one was."""
    where = f"{repository}/{file}" if file else repository
    if isinstance(error, Refused):
        return _refusal(error, endpoint, repository, revision, where)
    if isinstance(error, TooSlow):
        return f"{where}: {endpoint} is too slow ({error}); check the network and try again{_kept(file)}"
    if isinstance(error, Unreachable):
        return f"{where}: {endpoint} cannot be reached ({error}); check the network and try again{_kept(file)}"
    if isinstance(error, WrongBytes):
        return (
            f"{where}: what {endpoint} sent does not have the checksum that it lists, so it was deleted; try again, "
            "and do not use this hub if that does not help"
        )
    if isinstance(error, HubError):
        return f"{where}: the answer of {endpoint} is not that of a hub ({error}); check HF_ENDPOINT and the network"
    return _local(error, where)


def is_busy(error: BaseException) -> bool:
    """Tell whether the hub answered that it cannot answer now."""
    return isinstance(error, Refused) and error.status in _BUSY_STATUSES


def with_retries(
    call: Callable[[], Result],
    passing: Callable[[BaseException], bool],
    pause: Pause,
    has_advanced: Callable[[], bool] = lambda: False,
) -> Result:
    """Call until it works. It may fail a few times in a row with errors that pass."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            advanced = has_advanced()
            failures = 0 if advanced else failures
            if failures == len(BACKOFF_S) or not passing(error) or (isinstance(error, TooSlow) and not advanced):
                raise
        pause(BACKOFF_S[failures])
        failures += 1


def reason(error: BaseException) -> str:
    """The text of an error as short printable text."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(ascii(text)[1:-1].split())[:120]


def _refusal(error: Refused, endpoint: str, repository: str, revision: str, where: str) -> str:
    status, is_listing = error.status, where == repository
    if error.code == "GatedRepo":
        return (
            f"{repository}: its licence must be accepted first: do so at {endpoint}/{repository}, then set HF_TOKEN to "
            "a token of that account"
        )
    if error.code == "RepoNotFound" or (status in (401, 404) and is_listing and not error.code):
        return (
            f"{repository}: no such model at {endpoint}, or a private one; check the name, or set HF_TOKEN to a token "
            "that may read it"
        )
    if error.code == "RevisionNotFound":
        return f"{repository}: has no revision {revision}; {endpoint}/{repository} shows its branches and tags"
    if error.code == "EntryNotFound" or status == 404:
        return f"{where}: listed but not there, so the repository has just changed; try again"
    if status in (401, 403):
        return f"{where}: {endpoint} refuses access ({status}); check that HF_TOKEN is valid and may read this model"
    return f"{where}: {endpoint} answers with status {status}; try again later"


def _kept(file: str) -> str:
    return ", what has arrived is kept" if file else ""


def _local(error: OSError, where: str) -> str:
    place = f" {error.filename}" if error.filename else ""
    if error.errno in _NO_SPACE:
        return f"{where}: the disk is full; make room and try again, or set HF_HOME to a folder on a larger disk"
    if error.errno in _NOT_WRITABLE:
        return f"{where}: the cache cannot be written,{place} ({reason(error)}); set HF_HOME to a folder of yours"
    return f"{where}: cannot be downloaded ({reason(error)}); try again, what has arrived is kept"
