"""From logits to the next token id: small functions, composed once by the Sampler."""

import math
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hybrid.errors import ModelError, UsageError

Logits = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen. Temperature 0 is greedy: the likeliest token, whatever the rest says.

    `top_k` keeps the k likeliest tokens (0: all). `top_p` then keeps the fewest likeliest tokens that make up
    that probability (1: all). `seed` repeats a text; None draws a new one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be a number from 0 up, not {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top-k must be a whole number from 0 (all tokens) up, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed must be a whole number from 0 up, not {self.seed}")


class Sampler:
    """Chooses token ids under one set of settings; `seed` is the one in use, drawn when none was given."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._generator = np.random.Generator(np.random.PCG64(self.seed))

    def __call__(self, logits: Logits) -> int:
        """The next token id, from logits [vocab]."""
        check(logits)
        settings = self.settings
        if settings.temperature == 0:
            return greedy(logits)
        ids = keep_top_k(logits, settings.top_k)
        ids, probabilities = keep_top_p(ids, softmax(logits[ids], settings.temperature), settings.top_p)
        return draw(ids, probabilities, self._generator.random())


def check(logits: Logits) -> None:
    """Refuse logits that no token can be chosen from: NaN or +inf anywhere, or -inf everywhere."""
    best = logits.max()  # NaN if any is
    if not np.isfinite(best):
        raise ModelError(
            f"the largest logit of the model is {best}: its weights are damaged or its numbers overflow"
        )


def greedy(logits: Logits) -> int:
    """The likeliest token; of equals, the lowest id."""
    return int(np.argmax(logits))


def keep_top_k(logits: Logits, k: int) -> Ids:
    """Ids of the k largest logits, ascending; all for k = 0. Of equals at the edge, the lowest ids."""
    vocab = logits.shape[0]
    if k == 0 or k >= vocab:
        return np.arange(vocab)
    ids = np.flatnonzero(logits >= _top_k_bound(logits, k))
    # The order that argpartition leaves equals in depends on the CPU; the k-th value does not.
    edge = np.partition(logits[ids], len(ids) - k)[len(ids) - k]
    above, equal = ids[logits[ids] > edge], ids[logits[ids] == edge]
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def _top_k_bound(logits: Logits, k: int) -> float:
    """A value that at least k logits reach, and few more: the k-th largest of the maxima of groups of 64."""
    groups = logits.shape[0] // 64
    if k > groups:
        return -math.inf
    maxima = logits[: groups * 64].reshape(64, groups).max(axis=0)
    return float(np.partition(maxima, groups - k)[groups - k])


def softmax(logits: Logits, temperature: float) -> Probabilities:
    """Probabilities of logits divided by a temperature above 0, in the precision of the logits."""
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        scaled = (logits - logits.max()) / max(temperature, 1e-20)
    weights = np.exp(scaled)
    probabilities: Probabilities = weights / weights.sum()
    return probabilities


def keep_top_p(ids: Ids, probabilities: Probabilities, p: float) -> tuple[Ids, Probabilities]:
    """The fewest likeliest ids whose probabilities reach p, likeliest first, rescaled to 1; all for p = 1."""
    if p == 1:
        return ids, probabilities
    # Tokens below this share cannot hold 1 - p together, so the others hold p: only those need sorting.
    likely = probabilities >= (1 - p) / len(ids)
    ids, probabilities = ids[likely], probabilities[likely]
    order = np.argsort(-probabilities, kind="stable")
    ids, probabilities = ids[order], probabilities[order]
    count = int(np.searchsorted(np.cumsum(probabilities.astype(np.float64)), p)) + 1
    kept = probabilities[:count]
    return ids[:count], kept / kept.sum()


def draw(ids: Ids, probabilities: Probabilities, uniform: float) -> int:
    """The id in whose share of [0, 1) a uniform number falls."""
    ends = np.cumsum(probabilities.astype(np.float64))
    # Scaled by the last end, which rounding leaves a little off 1, so that no number falls behind it.
    index = int(np.searchsorted(ends, uniform * ends[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])
