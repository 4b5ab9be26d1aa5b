"""A conversation of many turns on one engine: what was said, and a cache that is kept from turn to turn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hybrid.chat.reply import Prompt, Reply, ReplyRules, ReplyStats
from hybrid.chat.saved import load, save
from hybrid.chat.transcript import Transcript
from hybrid.errors import ContextFullError, UsageError
from hybrid.text.chat_template import Message
from hybrid.text.generate import TokenEngine
from hybrid.text.tokenizer import Tokenizer
from offload.spec.units import counted

RETRY_TEMPERATURE = 0.8  # of another reply, where the rules say 0


class Template(Protocol):
    """Messages to text: a `ChatTemplate`, or `Completion` for models that have none."""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to where the assistant speaks if `add_generation_prompt`."""


class Completion:
    """Stands in for a chat template: what is written is continued, a line after what there is."""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The messages as one text; a new line follows each but the user's, which is to be continued."""
        return "".join(message.content + ("" if message.role == "user" else "\n") for message in messages)


class Conversation:
    """Messages, and the engine that answers them. Knows no terminal.

    A turn runs only the tokens that the cache does not hold yet. When the context is full, the oldest turns are left
    out of what the model sees; they stay in `messages`, and the system message is always seen. Others may use the
    engine between two turns; then the next one runs all of its prompt.
    """

    def __init__(
        self,
        engine: TokenEngine,
        tokenizer: Tokenizer,
        template: Template,
        rules: ReplyRules,
        system: str | None = None,
    ) -> None:
        self.engine = engine
        self.rules = rules
        self.system = system
        self.messages: tuple[Message, ...] = ()  # user and assistant by turns; without the system message
        self.last_stats: ReplyStats | None = None
        self._tokenizer = tokenizer
        self._template = template
        self._transcript = Transcript(tokenizer, plain=isinstance(template, Completion))
        self._left_out = 0  # messages at the beginning that the model no longer sees
        self._retries = 0
        self._reply: Reply | None = None

    @property
    def left_out(self) -> int:
        """Count the oldest messages that the model no longer sees."""
        return self._left_out

    def send(self, text: str) -> Reply:
        """Say something; the reply comes as it is iterated, and both become messages at its end.

        A reply that is stopped before its first token leaves the messages as they were. Raises ContextFullError,
        with nothing changed, for text that does not fit even without the turns before it.
        """
        if not text.strip():
            raise UsageError("there is nothing to send")
        self._settle()
        self._retries = 0
        return self._answer(self.messages, text, self.rules)

    def retry(self) -> Reply:
        """Answer the last message once more, with `RETRY_TEMPERATURE` where 0 would give the same.

        The old reply stays until the new one has begun.
        """
        self._settle()
        if not self.messages:
            raise UsageError("there is nothing to retry yet")
        self._retries += 1
        seed = self.rules.sampling.seed  # the same seed would give the same reply
        sampling = replace(
            self.rules.sampling,
            seed=None if seed is None else seed + self._retries,
            temperature=self.rules.sampling.temperature or RETRY_TEMPERATURE,
        )
        return self._answer(self.messages[:-2], self.messages[-2].content, replace(self.rules, sampling=sampling))

    def undo(self) -> str:
        """Take the last turn back; gives what the user had said."""
        self._settle()
        if not self.messages:
            raise UsageError("there is nothing to undo")
        said = self.messages[-2].content
        self._set_messages(self.messages[:-2])
        return said

    def clear(self) -> None:
        """Forget all messages; the system message stays."""
        self._settle()
        self._set_messages(())

    def save(self, path: Path, model: str = "") -> None:
        """Write system message and messages as JSON."""
        save(path, self.system, self.messages, model)

    def load(self, path: Path) -> None:
        """Take system message and messages from a file that `save` wrote; the cache follows at the next turn."""
        self._settle()
        self.system, messages = load(path)
        self._set_messages(messages)

    def _settle(self) -> None:
        """End a reply that was left before its end."""
        if self._reply is not None:
            self._reply.close()

    def _set_messages(self, messages: tuple[Message, ...]) -> None:
        self.messages = messages
        self._left_out = min(self._left_out, len(messages))
        self._retries = 0

    def _answer(self, history: tuple[Message, ...], text: str, rules: ReplyRules) -> Reply:
        prompt = self._fit(history, text)

        def on_end(reply: Reply) -> None:
            self.last_stats = reply.stats
            if reply.said_something:
                self.messages = (*history, Message("user", text), Message("assistant", reply.text))
                self._left_out = prompt.left_out

        self._reply = Reply(self.engine, self._tokenizer, self._transcript, prompt, rules, on_end)
        return self._reply

    def _fit(self, history: tuple[Message, ...], text: str) -> Prompt:
        """The prompt, without as many of the oldest turns as it takes to leave room for a reply.

        Once turns have to go, so many go that half of the context is free: the cache is filled anew then, which
        should not happen at every turn.
        """
        context = self.engine.context_tokens
        prompt = self._prompt(history, text, min(self._left_out, len(history)))
        if len(prompt.ids) + min(self.rules.max_tokens, context // 4) > context:
            while len(prompt.ids) > context // 2 and prompt.left_out < len(history):
                prompt = self._prompt(history, text, prompt.left_out + 2)
        if len(prompt.ids) >= context:
            what = "the system message and this message" if self.system else "this message"
            less = "send less, or shorten the system message with /system" if self.system else "send less"
            may_grow = self.engine.context_may_grow
            more = "or start with a larger --context" if may_grow else "this model was made for no larger context"
            raise ContextFullError(
                f"{what} would take {len(prompt.ids):,} of the {counted(context, 'token')} of the context, "
                f"which leaves no room for a reply; {less}, {more}"
            )
        return prompt

    def _prompt(self, history: tuple[Message, ...], text: str, left_out: int) -> Prompt:
        system = [Message("system", self.system)] if self.system else []
        rendered = self._template.render([*system, *history[left_out:], Message("user", text)])
        return Prompt(rendered, self._transcript.encode(rendered), left_out)
