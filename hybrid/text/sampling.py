"""From logits to the next token id: the settings, and the Sampler that composes the transforms once."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hybrid.errors import UsageError
from hybrid.text.occurrences import Occurrences
from hybrid.text.transforms import (
    Logits,
    Weights,
    check,
    draw_first,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
    typicality,
    weigh,
)

__all__ = ["Logits", "Sampler", "SamplingSettings"]

_MAX_FACTOR, _MAX_PENALTY = 1e3, 1e6  # beyond these logits overflow; nobody means more than a few


@dataclass(frozen=True)
class SamplingSettings:
    """The rules by which a token is chosen. Temperature 0 is greedy: the likeliest token after bias and penalties.

    The rules apply in this order, which is that of transformers; each sees what the one before it left:

    - `logit_bias` is added to the logits of single ids; -inf bans one.
    - `repetition_penalty` divides positive and multiplies negative logits of ids in the prompt or the text so far
      (1: none).
    - `presence_penalty` is subtracted once, `frequency_penalty` for each time, from logits of ids in the text so far;
      the prompt does not count, as in OpenAI's API (0: none).
    - `temperature` divides the logits.
    - `top_k` keeps the k likeliest tokens (0: all).
    - `top_p` keeps the fewest likeliest tokens that make up that probability (1: all).
    - `min_p` keeps tokens of at least that share of the likeliest one's probability (0: all).
    - `typical_p` keeps the fewest most typical tokens that make up that probability (1: all).

    `seed` repeats a text; None draws a new one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be a number from 0 up, not {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top-k must be a whole number from 0 (all tokens) up, not {self.top_k}")
        for name, share in (("top-p", self.top_p), ("typical-p", self.typical_p)):
            if not 0 < share <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, not {share}")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p must be between 0 and 1, not {self.min_p}")
        if not 1 / _MAX_FACTOR <= self.repetition_penalty <= _MAX_FACTOR:
            raise UsageError(
                f"repetition-penalty must be from {1 / _MAX_FACTOR:g} to {_MAX_FACTOR:g}, not {self.repetition_penalty}"
            )
        for name, penalty in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not abs(penalty) <= _MAX_PENALTY:
                raise UsageError(f"{name}-penalty must be from -{_MAX_PENALTY:g} to {_MAX_PENALTY:g}, not {penalty}")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or not (abs(bias) <= _MAX_PENALTY or bias == -math.inf):
                raise UsageError(
                    f"logit-bias must give ids from 0 up a number of at most {_MAX_PENALTY:g}, or -inf, not"
                    f" {token_id} {bias}"
                )
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed must be a whole number from 0 up, not {self.seed}")


class Sampler:
    """Chooses the token ids of one text, and remembers them for the penalties.

    `seed` is the one in use, drawn when none was given. The same seed and logits give the same ids.
    """

    def __init__(self, settings: SamplingSettings, prompt_ids: Sequence[int] = ()) -> None:
        self.settings = settings
        self.seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._generator = np.random.Generator(np.random.PCG64(self.seed))
        self._seen = Occurrences(prompt_ids)
        self._generated = Occurrences()
        self._bias_ids = np.array(list(settings.logit_bias), np.int64)
        self._bias = np.array(list(settings.logit_bias.values()), np.float64)
        self._changes_logits = bool(
            settings.logit_bias
            or settings.repetition_penalty != 1
            or settings.presence_penalty
            or settings.frequency_penalty
        )

    def __call__(self, logits: Logits) -> int:
        """The next token id, from logits [vocab], which stay as they are."""
        check(logits)
        if not self._changes_logits:
            return self._choose(logits)
        token_id = self._choose(self._changed(logits))
        self._seen.add(token_id)
        self._generated.add(token_id)
        return token_id

    def _changed(self, logits: Logits) -> Logits:
        """A copy of the logits after bias and penalties."""
        settings, vocab = self.settings, len(logits)
        if any(token_id >= vocab for token_id in settings.logit_bias):
            raise UsageError(f"logit-bias has token id {max(settings.logit_bias)}; the model has {vocab}, from 0 up")
        logits = logits.copy()
        logits[self._bias_ids] += self._bias.astype(logits.dtype)
        if settings.repetition_penalty != 1:
            penalise_repetition(logits, self._seen.ids, settings.repetition_penalty)
        presence, frequency = settings.presence_penalty, settings.frequency_penalty
        if presence or frequency:
            penalise_counts(logits, self._generated.ids, self._generated.counts, presence, frequency)
        if logits.max() == -math.inf:
            raise UsageError("logit-bias bans every token that the model could go on with")
        return logits

    def _choose(self, logits: Logits) -> int:
        settings = self.settings
        if settings.temperature == 0:
            return greedy(logits)
        if not 0 < settings.top_k < len(logits):
            return self._draw(weigh(logits, settings.temperature))
        ids = keep_top_k(logits, settings.top_k)
        return int(ids[self._draw(weigh(logits[ids], settings.temperature))])

    def _draw(self, weights: Weights) -> int:
        settings, score = self.settings, weights
        limit = math.inf if settings.top_p == 1 else settings.top_p * float(weights.sum())
        if settings.typical_p < 1:  # which is typical depends on all that is kept before
            weights = keep_top_p(weights, settings.top_p)
        keep_min_p(weights, settings.min_p)
        if settings.typical_p < 1:
            limit, score = settings.typical_p * float(weights.sum()), typicality(weights)
        return draw_first(weights, score, limit, self._generator.random)
