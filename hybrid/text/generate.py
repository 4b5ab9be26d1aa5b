"""The generation loop: engine, prompt and sampling in; token ids out, one at a time, and what they took."""

import statistics
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hybrid.errors import UsageError
from hybrid.text.sampling import Logits, Sampler, SamplingSettings


class TokenEngine(Protocol):
    """What the loop needs of an engine (see `hybrid.runtime.engine.Engine`)."""

    @property
    def context_tokens(self) -> int:
        """How many tokens the cache can hold."""

    @property
    def position(self) -> int:
        """How many tokens it holds."""

    def prefill(self, token_ids: Sequence[int], /) -> Logits:
        """Logits [vocab] after the last of many ids."""

    def decode(self, token_id: int, /) -> Logits:
        """Logits [vocab] after one more id."""


class StopReason(StrEnum):
    """Why a text ended."""

    END = "end"  # the model chose an end token
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"  # the cache is full
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class GenerationStats:
    """What a generation took so far. Times are those of the engine's calls, on the wall clock.

    The end token is not counted as generated. A text that reached its limit does not decode its last token,
    so there can be one step less than there are tokens.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    step_s: tuple[float, ...]  # each decode step
    time_to_first_token_s: float | None  # from the start of the loop; sampling included
    stop_reason: StopReason | None  # None: not ended

    @property
    def decode_s(self) -> float:
        """Seconds of all decode steps."""
        return sum(self.step_s)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens a second; None when nothing was measured."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decode steps a second; None when there were none."""
        return len(self.step_s) / self.decode_s if self.decode_s > 0 else None

    @property
    def decode_step_median_s(self) -> float | None:
        """The decode step in the middle; None when there were none."""
        return statistics.median(self.step_s) if self.step_s else None


class Generation(Iterator[int]):
    """A text being generated: iterate for its token ids, ask `stats` at any time, `stop()` from anywhere."""

    def __init__(
        self,
        engine: TokenEngine,
        prompt_ids: Sequence[int],
        sampling: SamplingSettings,
        max_tokens: int,
        stop_ids: Collection[int],
    ) -> None:
        if not prompt_ids:
            raise UsageError("the prompt has no tokens; this model needs at least one character")
        if max_tokens < 1:
            raise UsageError(f"max-tokens must be at least 1, not {max_tokens}")
        self._engine = engine
        self._prompt_ids = prompt_ids
        self._sampler = Sampler(sampling)
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._stop_asked = False
        self._generated = 0
        self._prefill_s = 0.0
        self._step_s: list[float] = []
        self._first_token_s: float | None = None
        self._stop_reason: StopReason | None = None
        self._tokens = self._loop()

    @property
    def seed(self) -> int | None:
        """The seed that repeats this text; None when nothing is drawn, at temperature 0."""
        return self._sampler.seed if self._sampler.settings.temperature > 0 else None

    @property
    def stats(self) -> GenerationStats:
        """What was measured so far."""
        return GenerationStats(
            prompt_tokens=len(self._prompt_ids),
            generated_tokens=self._generated,
            prefill_s=self._prefill_s,
            step_s=tuple(self._step_s),
            time_to_first_token_s=self._first_token_s,
            stop_reason=self._stop_reason,
        )

    def stop(self) -> None:
        """End before the next token. Safe in a signal handler: a step that runs is finished, never torn."""
        self._stop_asked = True

    def __next__(self) -> int:
        return next(self._tokens)

    def _loop(self) -> Iterator[int]:
        started = time.perf_counter()
        logits = self._engine.prefill(self._prompt_ids)
        self._prefill_s = time.perf_counter() - started
        while not self._stop_asked:
            token_id = self._sampler(logits)
            if token_id in self._stop_ids:
                self._stop_reason = StopReason.END
                return
            self._generated += 1
            if self._first_token_s is None:
                self._first_token_s = time.perf_counter() - started
            yield token_id
            if self._generated >= self._max_tokens:
                self._stop_reason = StopReason.MAX_TOKENS
                return
            if self._engine.position >= self._engine.context_tokens:
                self._stop_reason = StopReason.CONTEXT
                return
            step_started = time.perf_counter()
            logits = self._engine.decode(token_id)
            self._step_s.append(time.perf_counter() - step_started)
        self._stop_reason = StopReason.INTERRUPTED


def generate(
    engine: TokenEngine,
    prompt_ids: Sequence[int],
    sampling: SamplingSettings,
    max_tokens: int,
    stop_ids: Collection[int] = (),
) -> Generation:
    """Token ids after a prompt, as they come; the engine's cache goes on from where it is.

    Ends before any of `stop_ids` (which is not given out), after `max_tokens`, or when the context is full;
    `Generation.stats.stop_reason` says which. A prompt that does not fit raises ContextFullError.
    """
    return Generation(engine, prompt_ids, sampling, max_tokens, stop_ids)
