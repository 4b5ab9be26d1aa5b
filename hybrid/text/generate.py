"""The generation loop: engine, prompt and sampling in; token ids out, one at a time, and what they took."""

import statistics
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol, TypeVar

from hybrid.errors import UsageError
from hybrid.text.detokenizer import TextStream
from hybrid.text.sampling import Logits, Sampler, SamplingSettings
from hybrid.text.stop_words import StopWords

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ClosableIterator(Iterator[T_co], Protocol[T_co]):
    """An iterator that can be left before its end."""

    def close(self) -> None:
        """Leave it where it is."""


class TokenEngine(Protocol):
    """The part of an engine that the loop needs (see `hybrid.engine.engine.Engine`)."""

    @property
    def context_tokens(self) -> int:
        """Give the number of tokens that the cache can hold."""

    @property
    def context_may_grow(self) -> bool:
        """Tell whether the model could be loaded with room for more."""

    @property
    def position(self) -> int:
        """Give the number of tokens in the cache."""

    def prefill(self, token_ids: Sequence[int], /) -> Logits:
        """Logits [vocab] after the last of many ids."""

    def decode(self, token_id: int, /) -> Logits:
        """Logits [vocab] after one more id."""

    def trim(self, length: int, /) -> None:
        """Forget all but the first `length` tokens."""

    def held(self, token_ids: Sequence[int], /) -> int:
        """Count the ids, from the first on, that the cache holds from its beginning on."""

    def ahead(self, steps: Generator[T, None, None], /) -> ClosableIterator[T]:
        """Give what `steps` yields, with nobody else using the engine in between; they may run ahead of who reads."""


class StopReason(StrEnum):
    """Why a text ended."""

    END = "end"  # the model chose an end token
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"  # the cache is full
    STOP_WORD = "stop_word"  # one of the words to stop at came up in the text
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class GenerationStats:
    """The counts and times of a generation so far. Times are those of the engine's calls, on the wall clock.

    The end token is not counted as generated. A text that reached its limit does not decode its last token,
    so there can be one step less than there are tokens.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    step_s: tuple[float, ...]  # each decode step
    time_to_first_token_s: float | None  # from the start of the loop; sampling included
    stop_reason: StopReason | None  # None: not ended
    first_depth: int = 0  # tokens in the cache before the first decode step

    @property
    def mean_depth(self) -> float | None:
        """Tokens in the cache before a decode step, a mean over all; None when there were none."""
        return self.first_depth + (len(self.step_s) - 1) / 2 if self.step_s else None

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
        prompt_logits: Logits | None = None,
        is_fresh: bool = False,
    ) -> None:
        if not prompt_ids:
            raise UsageError("the prompt has no tokens; this model needs at least one character")
        if max_tokens < 1:
            raise UsageError(f"max-tokens must be at least 1, not {max_tokens}")
        self._engine = engine
        self._is_fresh = is_fresh
        self._prompt_ids = prompt_ids
        self._prompt_logits = prompt_logits  # None: the prompt has to be run yet
        self._sampler = Sampler(sampling, prompt_ids)
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._stop_asked: StopReason | None = None
        self._given = 0
        self._prefill_s = 0.0
        self._step_s: list[float] = []
        self._first_depth = 0
        self._first_token_s: float | None = None
        self._loop_reason: StopReason | None = None  # why no further token was made
        self._stop_reason: StopReason | None = None
        self._tokens = engine.ahead(self._loop())

    @property
    def seed(self) -> int | None:
        """The seed that repeats this text; None when nothing is drawn, at temperature 0."""
        return self._sampler.seed if self._sampler.settings.temperature > 0 else None

    @property
    def sampling_seed(self) -> int:
        """The seed in use, whether or not anything is drawn."""
        return self._sampler.seed

    @property
    def stats(self) -> GenerationStats:
        """Sum up the generation so far, for the tokens that were given out."""
        is_whole = self._stop_reason is not None and self._stop_reason is self._loop_reason
        return GenerationStats(
            prompt_tokens=len(self._prompt_ids),
            generated_tokens=self._given,
            prefill_s=self._prefill_s,
            step_s=tuple(self._step_s if is_whole else self._step_s[: max(0, self._given - 1)]),
            time_to_first_token_s=self._first_token_s if self._given else None,
            stop_reason=self._stop_reason,
            first_depth=self._first_depth,
        )

    @property
    def prompt_logits(self) -> Logits | None:
        """The logits after the prompt, once it has run: another text can begin with them (see `generate_several`)."""
        return self._prompt_logits

    def stop(self, reason: StopReason = StopReason.INTERRUPTED) -> None:
        """End before the next token. Safe in a signal handler: a step that runs is finished, never torn."""
        self._stop_asked = reason

    def __next__(self) -> int:
        if self._stop_reason is None and self._stop_asked is None:
            token_id = next(self._tokens, None)
            if token_id is not None:
                self._given += 1
                return token_id
            self._stop_reason = self._loop_reason
        self._stop_reason = self._stop_reason or self._stop_asked
        raise StopIteration

    def _loop(self) -> Generator[int, None, None]:
        started = time.perf_counter()
        if self._is_fresh:
            self._engine.trim(0)
        if self._prompt_logits is None:
            self._prompt_logits = self._engine.prefill(self._prompt_ids).copy()  # the engine's array may be used again
            self._prefill_s = time.perf_counter() - started
        logits = self._prompt_logits
        self._first_depth = self._engine.position
        made = 0
        while self._stop_asked is None:
            token_id = self._sampler(logits)
            if token_id in self._stop_ids:
                self._loop_reason = StopReason.END
                return
            made += 1
            if self._first_token_s is None:
                self._first_token_s = time.perf_counter() - started
            yield token_id
            if self._stop_asked is not None:
                break
            if made >= self._max_tokens:
                self._loop_reason = StopReason.MAX_TOKENS
                return
            if self._engine.position >= self._engine.context_tokens:
                self._loop_reason = StopReason.CONTEXT
                return
            step_started = time.perf_counter()
            logits = self._engine.decode(token_id)
            self._step_s.append(time.perf_counter() - step_started)
        self._loop_reason = self._stop_asked


def generate(
    engine: TokenEngine,
    prompt_ids: Sequence[int],
    sampling: SamplingSettings,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    is_fresh: bool = False,
) -> Generation:
    """Token ids after a prompt, as they come; the cache goes on from where it is, or begins anew if `is_fresh`.

    Ends before any of `stop_ids` (which is not given out), after `max_tokens`, or when the context is full;
    `Generation.stats.stop_reason` says which. A prompt that does not fit raises ContextFullError.
    """
    return Generation(engine, prompt_ids, sampling, max_tokens, stop_ids, is_fresh=is_fresh)


def generate_several(
    engine: TokenEngine,
    prompt_ids: Sequence[int],
    sampling: SamplingSettings,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    count: int = 1,
) -> Iterator[Generation]:
    """`count` texts after one prompt, one after another; the prompt runs once, in the first.

    A text has to be at its end before the next is asked for: they share the cache, which is trimmed to the prompt
    in between. The first has the seed that was given, or drawn; each further one the next number.
    """
    if count < 1:
        raise UsageError(f"n must be at least 1, not {count}")
    start = engine.position
    generation = Generation(engine, prompt_ids, sampling, max_tokens, stop_ids)
    seed = generation.sampling_seed
    yield generation
    for number in range(1, count):
        logits = generation.prompt_logits
        if logits is None:
            raise UsageError("the first text must be generated before the next: the prompt has not run yet")
        engine.trim(start + len(prompt_ids))
        again = replace(sampling, seed=seed + number)
        generation = Generation(engine, prompt_ids, again, max_tokens, stop_ids, logits)
        yield generation


def text_of(generation: Generation, stream: TextStream, stop_words: StopWords | None = None) -> Iterator[str]:
    """The text of a generation, as soon as it is certain; ends before the first of the stop words."""
    words = stop_words or StopWords(())
    for token_id in generation:
        if text := words.feed(stream.feed(token_id)):
            yield text
        if words.found is not None:
            generation.stop(StopReason.STOP_WORD)
    if text := words.feed(stream.flush()) + words.flush():
        yield text
