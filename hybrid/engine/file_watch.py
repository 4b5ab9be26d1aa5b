"""Model files that change while a model runs: noticed between steps, by their sizes and time stamps.

Weights stay in their mapped files, so what is written there is what the next step multiplies, and a page that a file
has lost ends the process. A file that was only replaced or removed does no harm: what is mapped is the old one.
"""

from collections.abc import Iterable
from time import perf_counter

from hybrid.errors import ModelFileError
from hybrid.graph.graph import Graph
from offload.spec.units import counted
from offload.storage.weight_file import FileRange, Identity, WeightFile

_PERIOD_S = 0.02
_AT_ONCE = 64  # a look takes 2 µs, and some exports have a file for every weight


class FileWatch:
    """Looks at the files of a model again and again, whether they are as they were when it was opened."""

    def __init__(self, files: Iterable[WeightFile]) -> None:
        self._files = tuple(files)
        self._next = 0
        self._looked_s = 0.0

    @classmethod
    def of(cls, graph: Graph) -> "FileWatch":
        """A watch over the files that the weights of a graph lie in."""
        sources = (initializer.source for initializer in graph.initializers.values())
        return cls(dict.fromkeys(source.file for source in sources if isinstance(source, FileRange)))

    def check(self) -> None:
        """Raise ModelFileError for a file that was written to since; where there are many, some at each call."""
        self._looked_s = perf_counter()
        first = self._next if self._next < len(self._files) else 0
        self._next = first + _AT_ONCE
        for file in self._files[first : self._next]:
            try:
                seen, now = file.identity, Identity.of(file.path.stat())
            except OSError:  # removed, or out of reach
                continue
            if now.is_of_same_file(seen) and now != seen:
                size = f": {counted(now.nbytes, 'byte')}, {seen.nbytes:,} when it was loaded"
                size = size if now.nbytes != seen.nbytes else ""
                raise ModelFileError(f"{file.path}: was written to while the model ran{size}; load the model again")

    def look_now_and_then(self) -> None:
        """`check`, unless that was just done: in the middle of long steps."""
        if perf_counter() - self._looked_s > _PERIOD_S:
            self.check()
