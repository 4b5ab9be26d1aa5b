"""Small functions that sampling applies to logits: penalise, keep, draw.

Weights are probabilities up to a factor: the likeliest token of a step weighs 1, a token that was removed 0.
What runs at every token neither sorts the vocabulary nor picks out of it by mask: plain passes are far faster.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hybrid.errors import ModelError

Logits = npt.NDArray[np.floating]
Weights = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Uniform = Callable[[], float]  # gives a new number from [0, 1) at each call

_BLOCK = 512  # weights that are summed together before a token is looked for among them


def check(logits: Logits) -> None:
    """Refuse logits that no token can be chosen from: NaN or +inf anywhere, or -inf everywhere."""
    best = logits.max()  # NaN if any is
    if not np.isfinite(best):
        raise ModelError(f"the largest logit of the model is {best}: its weights are damaged or its numbers overflow")


def greedy(logits: Logits) -> int:
    """The likeliest token; of equals, the lowest id."""
    return int(np.argmax(logits))


def penalise_repetition(logits: Logits, ids: Ids, penalty: float) -> None:
    """Divide the positive and multiply the negative logits of `ids` by a penalty, in place (arXiv 1909.05858)."""
    values = logits[ids]
    logits[ids] = np.where(values < 0, values * penalty, values / penalty)


def penalise_counts(logits: Logits, ids: Ids, counts: Counts, presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` for each time that an id has come up, in place (OpenAI's API)."""
    logits[ids] -= (presence + frequency * counts).astype(logits.dtype)


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


def weigh(logits: Logits, temperature: float) -> Weights:
    """Weights of logits divided by a temperature above 0, in the precision of the logits."""
    weights: Weights = logits - logits.max()
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        weights /= max(temperature, 1e-20)
    np.exp(weights, out=weights)
    return weights


def keep_top_p(weights: Weights, p: float) -> Weights:
    """The fewest largest weights that make up `p` of the sum, the others 0. Of equals, the lowest ids."""
    return keep_first(weights, weights, p)


def keep_min_p(weights: Weights, p: float) -> None:
    """Set weights of less than `p` times the largest to 0, in place (arXiv 2407.01082)."""
    if p > 0:
        weights *= weights >= weights.max() * weights.dtype.type(p)


def typicality(weights: Weights) -> Weights:
    """Measure how close each token's surprise, -log p, is to its expectation; 0 is best (arXiv 2202.00666)."""
    # Weights are probabilities but for a factor, which moves every surprise and its mean alike. One array is made: to
    # make more of this size costs more than the arithmetic.
    surprise: Weights = np.maximum(weights, np.finfo(weights.dtype).tiny)
    np.log(surprise, out=surprise)  # negative here, which does not matter
    surprise -= np.dot(weights, surprise) / weights.sum()
    np.abs(surprise, out=surprise)
    np.negative(surprise, out=surprise)
    return surprise


def keep_first(weights: Weights, score: Weights, p: float) -> Weights:
    """The fewest weights of highest score that make up `p` of the sum, the others 0. Of equals, the lowest ids.

    Sorts, which is slow for a whole vocabulary: `draw_first` does without.
    """
    if p >= 1:
        return weights
    ids = np.flatnonzero(weights)
    ids = ids[np.argsort(-score[ids], kind="stable")]
    ends = np.cumsum(weights[ids], dtype=np.float64)
    ids = ids[: int(np.searchsorted(ends, p * ends[-1])) + 1]
    kept = np.zeros_like(weights)
    kept[ids] = weights[ids]
    return kept


def draw(weights: Weights, uniform: float) -> int:
    """The index in whose share of the sum a number from [0, 1) falls; never one of weight 0."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    block, rest = _share_at(sums, uniform)
    start = block * _BLOCK
    index, _ = _share_at(weights[start : start + _BLOCK], rest)
    return start + index


def _share_at(weights: Weights, uniform: float) -> tuple[int, float]:
    """The index in whose share of the sum a number falls, and where in that share, from 0 to 1."""
    ends = np.cumsum(weights, dtype=np.float64)
    # By the last end, so that rounding lets no number fall behind it; nor may one fall on the empty shares there.
    at, last = uniform * ends[-1], int(np.searchsorted(ends, ends[-1]))
    index = min(int(np.searchsorted(ends, at, side="right")), last)
    share = float(weights[index])
    return index, (at - float(ends[index]) + share) / share


def draw_first(weights: Weights, score: Weights, limit: float, uniform: Uniform) -> int:
    """An index, by weight, among those of highest score that make up a sum of `limit`: as out of `keep_first`.

    Draws from all, and takes the draw if the weights that come before it make up less than the limit. If they make
    up more, all that may be drawn is among them, and they are drawn from next. Each draw is a few passes; about
    sum / limit of them are expected at first, and at least every second one halves what is left.
    Uses up `weights`, which may be `score` too: new arrays of this size cost more than the arithmetic.
    """
    while True:
        index = draw(weights, uniform())
        if limit >= math.inf:
            return index
        before = score > score[index]
        before[:index] |= score[:index] == score[index]
        weights *= before
        if float(weights.sum()) < limit:
            return index
