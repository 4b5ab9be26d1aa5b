"""Which token ids have come up, and how often: what penalties are made of."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class Occurrences:
    """Different ids and their counts, as arrays that grow, so that a step does not depend on the text's length."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        found = Counter(token_ids)
        self._index = {token_id: index for index, token_id in enumerate(found)}
        self._ids = np.array(list(found), np.int64)
        self._counts = np.array(list(found.values()), np.int64)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The different ids, in the order in which they first came up."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Give the number of times that each of `ids` has come up."""
        return self._counts[: len(self._index)]

    def add(self, token_id: int) -> None:
        """Count one more."""
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self._ids):  # full: twice the room
            self._ids = np.concatenate([self._ids, np.zeros(index + 16, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(index + 16, np.int64)])
        self._ids[index] = token_id
        self._counts[index] += 1
