"""From a loaded engine and a model folder to a conversation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.chat.conversation import Completion, Conversation
from hybrid.chat.reply import ReplyRules
from hybrid.text.chat_template import ChatTemplate, load_chat_template
from hybrid.text.generation_defaults import read_generation_defaults
from hybrid.text.sampling import SamplingSettings
from hybrid.text.stopping import end_ids
from hybrid.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine

NO_TEMPLATE = "none"


def find_template(model: Path, tokenizer: Tokenizer, name: str | None) -> tuple[ChatTemplate | Completion, str]:
    """The template to chat in, and a line that says which.

    `name` is what `load_chat_template` knows, or "none" to have one's text continued. A model without a template
    continues text too: a format that it was not trained on would give worse than that, and not show why.
    """
    if name == NO_TEMPLATE:
        return Completion(), "your text is continued, not answered"
    template = load_chat_template(model, tokenizer, name)
    if template is None:
        return Completion(), (
            "this model has no chat template, so your text is continued, not answered; if it was trained to chat, "
            "say how: --chat-template chatml, llama-2, llama-3, mistral or zephyr"
        )
    return template, f"chat template: {template.origin}"


def open_conversation(
    engine: "Engine",
    tokenizer: Tokenizer,
    model: Path,
    template: ChatTemplate | Completion,
    sampling: SamplingSettings,
    max_tokens: int,
    stop_words: Sequence[str] = (),
    system: str | None = None,
) -> Conversation:
    """A conversation that has not begun. Replies end where texts of the model do (see `stopping`)."""
    in_turns = template if isinstance(template, ChatTemplate) else None
    ends = end_ids(read_generation_defaults(model), engine.decoder.eos_token_ids, tokenizer, in_turns)
    rules = ReplyRules(sampling, max_tokens, ends, tuple(stop_words), max(engine.plan.chunk_tokens, 1))
    return Conversation(engine, tokenizer, template, rules, system)
