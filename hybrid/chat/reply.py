"""One reply: the prompt is run as far as it is new, then the text comes piece by piece."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from hybrid.chat.transcript import Transcript
from hybrid.text.detokenizer import TextStream
from hybrid.text.generate import Generation, StopReason, TokenEngine
from hybrid.text.sampling import Logits, SamplingSettings
from hybrid.text.stop_words import StopWords
from hybrid.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """The messages that a reply answers. `left_out` is how many of the oldest are not among them."""

    rendered: str
    ids: list[int]
    left_out: int


@dataclass(frozen=True)
class ReplyRules:
    """The rules of making replies, the same for all of a conversation."""

    sampling: SamplingSettings
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    stop_words: tuple[str, ...] = ()
    chunk_tokens: int = 512  # prompt tokens that run at once; a prompt can be interrupted in between


@dataclass(frozen=True)
class ReplyStats:
    """The counts and times of a reply so far."""

    reused_tokens: int  # of the prompt, found in the cache
    prefilled_tokens: int  # of the prompt, run
    prefill_s: float
    generated_tokens: int
    decode_tokens_per_s: float | None  # None: no step was measured
    context_used: int
    context_tokens: int
    stop_reason: StopReason | None  # None: not ended


class Reply(Iterator[str]):
    """A reply being made: iterate for its text, `stop()` from anywhere, ask `stats` at any time.

    Pieces can be empty: there is one after each chunk of the prompt, so that its progress can be shown.
    """

    def __init__(
        self,
        engine: TokenEngine,
        tokenizer: Tokenizer,
        transcript: Transcript,
        prompt: Prompt,
        rules: ReplyRules,
        on_end: Callable[["Reply"], None],
    ) -> None:
        self.text = ""
        self.prompt = prompt
        self._engine = engine
        self._tokenizer = tokenizer
        self._transcript = transcript
        self._rules = rules
        self._on_end = on_end
        self._reused = 0
        self._prefilled = 0
        self._prefill_s = 0.0
        self._generation: Generation | None = None
        self._stop_asked = False
        self._stop_reason: StopReason | None = None
        self._pieces = engine.ahead(self._run())

    @property
    def said_something(self) -> bool:
        """Tell whether the model chose anything, be it the end at once."""
        return self._generation is not None and (
            self._generation.stats.generated_tokens > 0 or self._stop_reason is StopReason.END
        )

    @property
    def stats(self) -> ReplyStats:
        """Sum up the reply so far."""
        made = self._generation.stats if self._generation else None
        return ReplyStats(
            reused_tokens=self._reused,
            prefilled_tokens=self._prefilled,
            prefill_s=self._prefill_s,
            generated_tokens=made.generated_tokens if made else 0,
            decode_tokens_per_s=made.decode_tokens_per_s if made else None,
            context_used=self._engine.position,
            context_tokens=self._engine.context_tokens,
            stop_reason=self._stop_reason,
        )

    def stop(self) -> None:
        """End after the step that runs. Safe in a signal handler."""
        self._stop_asked = True
        if self._generation is not None:
            self._generation.stop()

    def close(self) -> None:
        """End where it is."""
        self._pieces.close()

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self) -> Generator[str, None, None]:
        stream = TextStream(self._tokenizer, after=self.prompt.ids)
        words = StopWords(self._rules.stop_words)
        whole = ""  # with what a stop word cut off: the ids stand for that too
        try:
            logits: Logits | None = None
            for after_chunk in self._prefill():
                logits = after_chunk
                yield ""
            if logits is None or self._stop_asked:
                return
            rules = self._rules
            self._generation = Generation(
                self._engine, self.prompt.ids, rules.sampling, rules.max_tokens, rules.stop_ids, logits
            )
            for token_id in self._generation:
                self._transcript.ids.append(token_id)
                piece = stream.feed(token_id)
                whole += piece
                shown = words.feed(piece)
                self.text += shown
                yield shown
                if words.found is not None:
                    self._generation.stop(StopReason.STOP_WORD)
                elif self._stop_asked:  # before there was a generation to tell
                    self._generation.stop()
        finally:
            end = stream.flush()
            rest = words.feed(end) + words.flush()
            self.text += rest
            self._finish(whole + end)
        if rest:
            yield rest

    def _prefill(self) -> Iterator[Logits]:
        """Run what the cache does not hold; gives the logits after each chunk."""
        ids = self.prompt.ids
        # The last token is run even if it is held: logits are not kept.
        common = min(self._engine.held(ids), len(ids) - 1)
        self._engine.trim(common)
        self._transcript.ask(self.prompt.rendered, ids)
        self._reused = common
        for start in range(common, len(ids), self._rules.chunk_tokens):
            if self._stop_asked:
                return
            chunk = ids[start : start + self._rules.chunk_tokens]
            started = time.perf_counter()
            logits = self._engine.prefill(chunk)
            self._prefill_s += time.perf_counter() - started
            self._prefilled += len(chunk)
            yield logits

    def _finish(self, whole: str) -> None:
        made = self._generation.stats.stop_reason if self._generation else None
        self._stop_reason = made or StopReason.INTERRUPTED
        if self.said_something:
            self._transcript.answer(whole)
        self._on_end(self)
