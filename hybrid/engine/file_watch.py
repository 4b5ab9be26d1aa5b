"""Model files that change while a model runs: noticed between steps, by their sizes and time stamps.

Weights stay in their mapped files, so what is written there is what the next step multiplies, and a page that a file
has lost ends the process. A file that was only replaced or removed does no harm: what is mapped is the old one.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

from hybrid.errors import ModelFileError
from hybrid.graph.graph import FileRange, Graph
from offload.spec.units import counted

_PERIOD_S = 0.02
_AT_ONCE = 64  # a look takes 2 µs, and some exports have a file for every weight


class FileWatch:
    """Remembers what the files of a model look like, and looks again."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises ModelFileError for a file that is not there."""
        try:
            self._seen = {str(path): _look(path) for path in paths}
        except OSError as error:
            raise ModelFileError(f"{error.filename}: cannot be read: {error.strerror}") from None
        self._next = 0
        self._looked_s = 0.0

    @classmethod
    def of(cls, graph: Graph) -> "FileWatch":
        """A watch over the files that the weights of a graph lie in."""
        sources = (initializer.source for initializer in graph.initializers.values())
        return cls(dict.fromkeys(source.path for source in sources if isinstance(source, FileRange)))

    def check(self) -> None:
        """Raise ModelFileError for a file that was written to since; where there are many, some at each call."""
        self._looked_s = perf_counter()
        first = self._next if self._next < len(self._seen) else 0
        self._next = first + _AT_ONCE
        for path, seen in islice(self._seen.items(), first, self._next):
            try:
                now = _look(path)
            except OSError:  # removed, or out of reach
                continue
            if now.file == seen.file and now != seen:
                size = f": {counted(now.nbytes, 'byte')}, {seen.nbytes:,} when it was loaded"
                size = size if now.nbytes != seen.nbytes else ""
                raise ModelFileError(f"{path}: was written to while the model ran{size}; load the model again")

    def look_now_and_then(self) -> None:
        """`check`, unless that was just done: in the middle of long steps."""
        if perf_counter() - self._looked_s > _PERIOD_S:
            self.check()


@dataclass(frozen=True)
class _Look:
    """The marks by which a changed file is known."""

    file: tuple[int, int]  # its device and number
    nbytes: int
    written_ns: int


def _look(path: str | Path) -> _Look:
    stat = os.stat(path)
    return _Look((stat.st_dev, stat.st_ino), stat.st_size, stat.st_mtime_ns)
