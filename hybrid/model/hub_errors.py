"""What went wrong between us and the hub: whether to try again, and one line that says what to do.

Errors are told apart by the names of their classes: those of huggingface_hub and of the HTTP library under it, which
has changed twice, are not imported for it.
"""

import errno
import ssl
from collections.abc import Callable
from typing import Any

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)

Pause = Callable[[float], object]

_HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2"}
_BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: Exception, endpoint: str, repository: str, revision: str, file: str = "") -> str | None:
    """The line for an error of huggingface_hub; None for one that is a bug of ours."""
    names = _names(error)
    where = f"{repository}/{file}" if file else repository
    status = _status(error)
    if "GatedRepoError" in names:
        return (
            f"{repository}: its licence must be accepted first: do so at {endpoint}/{repository}, then set HF_TOKEN to "
            "a token of that account"
        )
    if "RepositoryNotFoundError" in names:
        return (
            f"{repository}: no such model at {endpoint}, or a private one; check the name, or set HF_TOKEN to a token "
            "that may read it"
        )
    if "RevisionNotFoundError" in names:
        return f"{repository}: has no revision {revision}; {endpoint}/{repository} shows its branches and tags"
    if "HFValidationError" in names:
        return f"{repository}: not a name that a model can have; expected org/name"
    if "DisabledRepoError" in names:
        return f"{repository}: {endpoint} has disabled this repository"
    if is_unreachable(error):
        hint = ", what has arrived is kept" if file else ""
        return f"{where}: {endpoint} cannot be reached ({_reason(error)}); check the network and try again{hint}"
    if "EntryNotFoundError" in names:
        return f"{where}: listed but not there, so the repository has just changed; try again"
    if status in (401, 403):
        return f"{where}: {endpoint} refuses access ({status}); check that HF_TOKEN is valid and may read this model"
    if status:
        return f"{where}: {endpoint} answers with status {status}; try again later"
    if isinstance(error, OSError):
        return _local(error, where)
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError) and not file:
        return f"{where}: the answer of {endpoint} is not that of a hub; check HF_ENDPOINT and the network"
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether the network failed, not the hub."""
    if _status(error):
        return False
    if "LocalEntryNotFoundError" in _names(error):  # what a failed request becomes when the cache has no copy
        return True
    roots = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return bool(roots & _HTTP_LIBRARIES) or isinstance(error, ConnectionError | TimeoutError | ssl.SSLError)


def is_busy(error: BaseException) -> bool:
    """Whether the hub answered that it cannot answer now."""
    return _status(error) in _BUSY_STATUSES


def is_passing(error: BaseException) -> bool:
    """Whether another attempt may go better."""
    # huggingface_hub says that a file came short by an OSError without a number.
    came_short = isinstance(error, OSError) and error.errno is None and not _status(error)
    return is_unreachable(error) or is_busy(error) or came_short


def with_retries(
    call: Callable[[], Any],
    passing: Callable[[BaseException], bool],
    pause: Pause,
    has_advanced: Callable[[], bool] = lambda: False,
) -> Any:
    """Call until it works. It may fail a few times in a row with errors that pass."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures = 0 if has_advanced() else failures
            if failures == len(BACKOFF_S) or not passing(error):
                raise
        pause(BACKOFF_S[failures])
        failures += 1


def _local(error: OSError, where: str) -> str:
    place = f" {error.filename}" if error.filename else ""
    if error.errno in _NO_SPACE:
        return f"{where}: the disk is full; make room and try again, or set HF_HOME to a folder on a larger disk"
    if error.errno in _NOT_WRITABLE:
        return f"{where}: the cache cannot be written,{place} ({_reason(error)}); set HF_HOME to a folder of yours"
    return f"{where}: cannot be downloaded ({_reason(error)}); try again, what has arrived is kept"


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _status(error: BaseException) -> int:
    """The HTTP status that an error is about, 0 for none; it may be the cause of the error."""
    for found in (error, error.__cause__):
        response: Any = getattr(found, "response", None)
        status = getattr(response, "status_code", 0)
        if isinstance(status, int) and status:
            return status
    return 0


def _reason(error: BaseException) -> str:
    inner = error.__cause__ or error
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner) or type(inner).__name__
    return " ".join(ascii(text)[1:-1].split())[:120]
