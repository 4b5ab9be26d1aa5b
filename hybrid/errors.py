"""Every error a user can cause, in one tree.

    HybridError                     base; the command line prints it as one line and exits with code 2
    ├── UsageError                  a flag or setting that cannot be (budget, sampling, unknown device)
    │   └── ArgumentsError          a command line that its --help puts right
    ├── ModelError                  a model folder that cannot be used
    │   ├── ModelFileError          a file is missing, unreadable, truncated or lies about its contents
    │   ├── ModelConfigError        config values that are absent, absurd or contradict the weights
    │   └── UnsupportedModelError   well formed, but an architecture or weight format we do not run
    ├── TokenizerError              no tokenizer, or one that cannot be read
    ├── EngineError                 a model that cannot go on here: closed, or in a fork of its process
    │   └── SupersededError         a text that another one was begun before
    ├── ContextFullError            the prompt or text does not fit the context
    ├── InstallationError           packages that are missing or overwrite each other
    └── DeviceUnavailableError      the GPU that was asked for cannot be used

A message says what, where, the value, the bound and what to try, on one line.
Errors of `offload` (out of memory, lost device) are in `offload/errors.py`; both share `OffloadError` as a
base, so a caller that catches it catches everything.
"""

from offload.errors import DeviceUnavailableError, OffloadError

__all__ = [
    "ArgumentsError",
    "ContextFullError",
    "DeviceUnavailableError",
    "EngineError",
    "HybridError",
    "InstallationError",
    "ModelConfigError",
    "ModelError",
    "ModelFileError",
    "OffloadError",
    "SupersededError",
    "TokenizerError",
    "UnsupportedModelError",
    "UsageError",
]


class HybridError(OffloadError):
    """Base of the errors that `hybrid` raises on purpose."""


class UsageError(HybridError):
    """A flag or setting with a value that cannot be."""


class ArgumentsError(UsageError):
    """Arguments that a command does not take as they are; where its help is, is added to the message."""


class ModelError(HybridError):
    """A model folder that cannot be used."""


class ModelFileError(ModelError):
    """A file is missing, unreadable, truncated or contradicts itself."""


class ModelConfigError(ModelError):
    """Configuration values that are absent, absurd, or contradict the weights."""


class UnsupportedModelError(ModelError):
    """A well-formed model of an architecture or weight format that we do not run."""


class TokenizerError(HybridError):
    """No tokenizer in the model folder, or one that cannot be read."""


class EngineError(HybridError):
    """A model that cannot go on here: it was closed, or this process is a fork of the one that loaded it."""


class SupersededError(EngineError):
    """A text that was not at its end when its reader began another one, and cannot be read on."""


class ContextFullError(HybridError):
    """The tokens do not fit into the context that was reserved."""


class InstallationError(HybridError):
    """Packages that are missing, or that overwrite each other."""
