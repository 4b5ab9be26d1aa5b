"""Beam search: the likeliest text instead of the likeliest next token."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hybrid.engine.token_ids import common_prefix
from hybrid.errors import UsageError
from hybrid.text.generate import StopReason, TokenEngine
from hybrid.text.sampling import Logits
from hybrid.text.transforms import check, keep_top_k


@dataclass(frozen=True)
class Beam:
    """One text that was found. Its log probability includes that of the end token, which is not among the ids."""

    token_ids: tuple[int, ...]
    log_probability: float
    score: float  # log probability / length ** length_penalty; the end token counts in the length
    stop_reason: StopReason  # END, MAX_TOKENS or CONTEXT


@dataclass(frozen=True)
class _Open:
    """A text that may go on."""

    token_ids: tuple[int, ...]
    log_probability: float


def beam_search(
    engine: TokenEngine,
    prompt_ids: Sequence[int],
    beams: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The likeliest texts after a prompt, best first, at most `beams`; one beam is greedy.

    A length penalty above 0 favours long texts, below 0 short ones, as in transformers. The search ends when no
    text that goes on could still be among the best (`early_stopping="never"` there).

    The engine holds one sequence, so beams take turns: a step trims the cache to what two beams have in common and
    runs the rest of the second one again, as one prefill. The prompt runs once. Beams that split up early cost
    `beams` times the tokens since then, at every step; those that differ in their last tokens only, little.
    Afterwards the cache holds the prompt and a beginning of the best text.
    """
    if beams < 1:
        raise UsageError(f"beams must be at least 1, not {beams}")
    if not prompt_ids:
        raise UsageError("the prompt has no tokens; this model needs at least one character")
    if max_tokens < 1:
        raise UsageError(f"max-tokens must be at least 1, not {max_tokens}")
    if not math.isfinite(length_penalty):
        raise UsageError(f"length-penalty must be a number, not {length_penalty}")
    replay = _ContinuationLogits(engine, prompt_ids)
    limit = min(max_tokens, replay.room + 1)  # the last token need not be run
    at_limit = StopReason.MAX_TOKENS if limit == max_tokens else StopReason.CONTEXT
    ends = frozenset(stop_ids)
    going, found = [_Open((), 0.0)], list[Beam]()
    for length in range(1, limit + 1):
        going, ended = _extend(replay, going, beams, ends)
        found += [_scored(text, length, length_penalty, StopReason.END) for text in ended]
        if length == limit:
            found += [_scored(text, length, length_penalty, at_limit) for text in going]
        found = sorted(found, key=lambda beam: (-beam.score, beam.token_ids))[:beams]
        if len(found) == beams and found[-1].score >= _reachable(going, length, limit, length_penalty):
            break
    replay.keep(found[0].token_ids)
    return found


def _extend(
    replay: "_ContinuationLogits", going: list[_Open], beams: int, ends: frozenset[int]
) -> tuple[list[_Open], list[_Open]]:
    """One more token on every beam: the likeliest `beams` that go on, and those that end while they are at it."""
    wanted = beams + len(ends)  # so many candidates of one beam can be needed: all ends may come before
    candidates = []
    for text in sorted(going, key=lambda text: text.token_ids):  # neighbours have most in common
        shares = log_softmax(replay.logits_after(text.token_ids))
        for token_id in keep_top_k(shares, min(wanted, len(shares))):
            log_probability = text.log_probability + float(shares[token_id])
            if log_probability > -math.inf:
                candidates.append((log_probability, text.token_ids, int(token_id)))
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
    next_going, ended = list[_Open](), list[_Open]()
    for log_probability, ids, token_id in candidates:
        if len(next_going) == beams:
            break
        if token_id in ends:
            ended.append(_Open(ids, log_probability))
        else:
            next_going.append(_Open((*ids, token_id), log_probability))
    return next_going, ended


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log probabilities of logits."""
    check(logits)
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
    return result


def _scored(text: _Open, length: int, length_penalty: float, reason: StopReason) -> Beam:
    return Beam(text.token_ids, text.log_probability, _score(text.log_probability, length, length_penalty), reason)


def _score(log_probability: float, length: int, length_penalty: float) -> float:
    return log_probability / math.pow(length, length_penalty)


def _reachable(going: list[_Open], length: int, limit: int, length_penalty: float) -> float:
    """The best score that a text which goes on could still get: it only loses log probability."""
    at = limit if length_penalty > 0 else min(length + 1, limit)
    return max((_score(text.log_probability, at, length_penalty) for text in going), default=-math.inf)


class _ContinuationLogits:
    """Logits after any text that follows the prompt, from an engine that holds one sequence."""

    def __init__(self, engine: TokenEngine, prompt_ids: Sequence[int]) -> None:
        self._engine = engine
        self._prompt_logits = engine.prefill(prompt_ids).copy()
        self._start = engine.position
        self._held: tuple[int, ...] = ()  # what the cache holds after the prompt

    @property
    def room(self) -> int:
        """Tokens that fit into the cache after the prompt."""
        return self._engine.context_tokens - self._start

    def logits_after(self, token_ids: tuple[int, ...]) -> Logits:
        """Logits after the prompt and these ids."""
        if not token_ids:
            return self._prompt_logits
        # The last token is run even if it is held: logits are not kept.
        self.keep(token_ids[:-1])
        rest = token_ids[len(self._held) :]
        self._held = token_ids
        return self._engine.decode(rest[0]) if len(rest) == 1 else self._engine.prefill(rest)

    def keep(self, token_ids: tuple[int, ...]) -> None:
        """Trim the cache to the prompt and what it has in common with these ids."""
        common = common_prefix(self._held, token_ids)
        if common < len(self._held):
            self._engine.trim(self._start + common)
            self._held = self._held[:common]
