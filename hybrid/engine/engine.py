"""The engine: token ids in, logits out."""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hybrid.engine.engine_thread import engine_thread
from hybrid.engine.executor import Executor
from hybrid.engine.file_watch import FileWatch
from hybrid.engine.island import array_of
from hybrid.engine.kv_cache import KvCache
from hybrid.engine.step_inputs import StepInputs
from hybrid.engine.token_ids import common_prefix
from hybrid.engine.turns import Text, Turns, this_caller
from hybrid.errors import ContextFullError, EngineError, UnsupportedModelError, UsageError
from hybrid.graph.decoder import Decoder
from hybrid.machine.memory import MemoryUse, MemoryWatch
from offload.devices.base import Device
from offload.observe.gpu_monitor import GpuMonitor
from offload.observe.timeline import DECODE, Timeline, step
from offload.plan.plan import Plan
from offload.run.recovery import RecoveringLinears
from offload.spec.units import counted

Logits = npt.NDArray[np.float32]

_CHECKED_TOKENS = 4
_ROUNDING_SHARE = 0.05  # of the logits' spread, that rounded activations may make
T = TypeVar("T")


class Engine:
    """A loaded model and its cache. Knows token ids only.

    Every thread may call it: what it does is done on the engine's thread, one call after the other. Calls that belong
    together, because they build on what the cache holds, go through `ahead` or `alone`.

    `target` is one clause on where it runs and why. `on_warning` is called with one line whenever a device that fails
    makes the run go on with less, `on_read` with the tokens of a prefill that are read after each part of it, and all.

    Close it, or use it as a context manager, to give VRAM and pinned memory back.
    """

    def __init__(
        self,
        decoder: Decoder,
        context_tokens: int,
        executor: Executor,
        cache: KvCache,
        inputs: StepInputs,
        linears: RecoveringLinears,
        device: Device | None,
        target: str,
        memory: MemoryWatch,
        files: FileWatch,
        timeline: Timeline | None = None,
        monitor: GpuMonitor | None = None,
    ) -> None:
        self.decoder = decoder
        self.on_warning: Callable[[str], None] = logging.getLogger("hybrid").warning
        self.on_read: Callable[[int, int], None] = lambda read, tokens: None
        self.context_tokens = context_tokens
        self._held: list[int] = []  # the tokens of the text
        self._most_new_tokens = decoder.most_new_tokens  # of a step; 0 for any number
        self._read = 0  # how many of them the cache has; it has all, unless they are to be read another way
        self._switched = decoder.switched(0)  # the way they were read
        self._torn = False  # whether a step was begun and has not come to its end
        self._thread = engine_thread()
        self._turns = Turns(self._thread)
        self._executor = executor
        self._cache = cache
        self._inputs = inputs
        self._linears = linears
        self._device = device
        self.target = target
        self.monitor = monitor  # of a CUDA device
        self._timeline = timeline
        self._memory = memory
        self._files = files
        self._step_sizes: set[int] = set()
        self._closed = False
        linears.on_warning = lambda line: self.on_warning(line)

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._linears.plan

    @property
    def position(self) -> int:
        """Give the number of tokens that the cache holds."""
        return len(self._held)

    @property
    def context_may_grow(self) -> bool:
        """Tell whether a larger --context would be taken: the model was made for more."""
        return self.context_tokens < self.decoder.most_context_tokens

    def held(self, token_ids: Sequence[int]) -> int:
        """Count the ids of `token_ids`, from the first on, that the cache holds from its beginning on."""
        return common_prefix(self._held, token_ids)

    def ahead(self, steps: Generator[T, None, None]) -> Text[T] | Generator[T, None, None]:
        """Give what `steps` yields, made on the engine's thread as one text, a little ahead of who reads it.

        A text that is half read while another caller begins one is made to its end at once; one that was superseded
        by its own reader raises SupersededError.
        """
        return steps if self._thread.is_current else Text(self._turns, steps)

    def alone(self, function: Callable[[], T]) -> T:
        """Call `function` on the engine's thread, with no other text coming in between; gives what it gives."""
        if self._thread.is_current:
            return function()
        caller = this_caller()

        def turn() -> T:
            self._turns.take(None, caller)
            return function()

        return self._thread.run(turn)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Append `token_ids` to the cache; gives the float32 logits [vocab] after the last one.

        Raises ContextFullError, with the cache as it was, when they do not fit.
        """
        return self.alone(lambda: self._prefill(token_ids))

    def decode(self, token_id: int) -> Logits:
        """Append one token; gives the float32 logits [vocab] after it."""
        return self.alone(lambda: self._decode(token_id))

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.alone(lambda: self._trim(length))

    def check_several_tokens(self) -> None:
        """Run a few tokens at once and one by one, and read all texts token by token if that does not agree.

        A graph that was traced with one token may let several see those behind them, or not take them at all.
        """
        ids = range(min(_CHECKED_TOKENS, self.context_tokens, self.decoder.vocab_size or _CHECKED_TOKENS))
        timeline, self._timeline = self._timeline, None  # it is no part of the run
        try:
            together = self.prefill(ids)
        except UnsupportedModelError:
            together = np.full(1, np.inf, np.float32)
        self.trim(0)
        self._most_new_tokens = 1
        apart = self.prefill(ids)
        self.trim(0)
        self._timeline = timeline
        if np.abs(together - apart).max() <= _ROUNDING_SHARE * apart.std():
            self._most_new_tokens = 0
        else:
            self.on_warning(
                f"{self.decoder.name} takes one token at a time: prompts are read as slowly as text is made"
            )

    def _prefill(self, token_ids: Sequence[int]) -> Logits:
        self._check(token_ids)
        switched = self.decoder.switched(self.position + len(token_ids))
        if switched != self._switched:
            self._read = 0
            self._cache.trim(0)
            self._switched = switched
        token_ids = [*self._held[self._read :], *token_ids]
        logits = np.empty(0, np.float32)
        chunk_tokens = min(self.plan.chunk_tokens, self._most_new_tokens or self.plan.chunk_tokens)
        for start in range(0, len(token_ids), chunk_tokens):
            chunk = token_ids[start : start + chunk_tokens]
            with step(self._timeline, f"prefill of {counted(len(chunk), 'token')}"):
                logits = self._step(chunk)
            self.on_read(start + len(chunk), len(token_ids))
        return logits

    def _decode(self, token_id: int) -> Logits:
        self._check((token_id,))
        if self._read < self.position or self.decoder.switched(self.position + 1) != self._switched:
            return self._prefill((token_id,))
        with step(self._timeline, DECODE):
            return self._step((token_id,))

    def _trim(self, length: int) -> None:
        if not 0 <= length <= self.position:
            raise UsageError(f"cannot trim the cache to {counted(length, 'token')}; it holds {self.position}")
        if length < self.position:
            del self._held[length:]
            self._read = min(self._read, length)
            self._cache.trim(self._read)

    def memory(self) -> MemoryUse:
        """Bytes in use and at the peak: VRAM as measured, RAM of this process."""
        return self._memory.read(self._linears.replanner, self.simulated)

    @property
    def simulated(self) -> bool:
        """True when a simulated device takes part: what it takes on the wall clock is no speed of anything."""
        return self._device is not None and self._device.simulated

    def close(self) -> None:
        """Give back what the device holds. The engine cannot be used afterwards; a text ends at its next step.

        In a fork of the process this does nothing: what is held is the parent's.
        """
        self._closed = True
        if not self._thread.is_foreign:
            self._thread.run(self._close)

    def _close(self) -> None:
        self._turns.close(EngineError(self._closed_line))
        if self.monitor is not None:
            self.monitor.close()
        self._linears.close()
        if self._device is not None:
            self._device.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, token_ids: Sequence[int]) -> None:
        if self._closed:
            raise UsageError(self._closed_line)
        if not token_ids:
            raise UsageError("there are no tokens to run; a prompt needs at least one")
        vocab_size = self.decoder.vocab_size
        for token_id in token_ids:
            if token_id < 0 or (vocab_size and token_id >= vocab_size):
                raise UsageError(f"token id {token_id} is outside the model's vocabulary of {vocab_size}")
        if self.position + len(token_ids) > self.context_tokens:
            after = f" after {self.position}" if self.position else ""
            hint = "or raise --context" if self.context_may_grow else "since this model was made for no more"
            raise ContextFullError(
                f"{counted(len(token_ids), 'token')}{after} do not fit into the context of "
                f"{counted(self.context_tokens, 'token')}; shorten the prompt, {hint}"
            )

    def _between_levels(self) -> None:
        self._thread.check()
        self._files.look_now_and_then()

    @property
    def _closed_line(self) -> str:
        return f"{self.decoder.name} was closed; load it again to go on"

    def _step(self, token_ids: Sequence[int]) -> Logits:
        self._files.check()
        if self._torn:  # what ended the last step may have come between any two instructions
            self._executor.bind_anew()
            self._cache.trim(self._read)
        self._torn = True
        inputs = {**self._inputs.next(token_ids, self._read, self._switched), **self._cache.inputs()}
        outputs = self._executor.run(len(token_ids), inputs, self._between_levels)
        self._files.check()
        if len(token_ids) not in self._step_sizes:  # libraries have other kernels for other numbers of tokens
            self._step_sizes.add(len(token_ids))
            self._linears.keep_budget()
        self._memory.sample()
        if self.plan.ram_is_asked or self.plan.read_ahead_bytes > 0:
            # Pages of mapped tables count as this process's RAM; the system has them still when they are wanted again.
            self._executor.drop_mapped_pages()
        self._cache.update(outputs)
        self._held[self._read : self._read + len(token_ids)] = token_ids
        self._read += len(token_ids)
        self._torn = False
        logits = array_of(outputs["logits"])
        last: Logits = logits.reshape(-1, logits.shape[-1])[-1].astype(np.float32)
        return last
