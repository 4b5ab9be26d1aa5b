"""Chat templates: messages in, the text that a model was trained to answer out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.errors import ModelFileError, UsageError
from hybrid.shown import show
from hybrid.source.folder import read_json, real_file
from hybrid.text.builtin_templates import BUILT_IN, TELLING_TOKENS, guess
from hybrid.text.model_files import CONFIG, home_of
from hybrid.text.template_errors import TemplateExceeded, TemplateFailed, TemplateRefused
from hybrid.text.tokenizer import Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
ROLES = ("system", "user", "assistant")

# Tokens that end a turn. A model can have another end of text than of turn, and name only the former.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|return|>")
_MOST_FILE_BYTES = 1 << 23  # the bound on a template is in characters
_PROBE = "What somebody says"


@dataclass(frozen=True)
class Message:
    """One turn: who says it (`ROLES`), and what."""

    role: str
    content: str


class ChatTemplate:
    """A template and the names of special tokens that it writes. `origin` says where it is from, for people."""

    def __init__(self, source: str, tokens: Mapping[str, str], origin: str) -> None:
        self.source = source
        self.origin = origin
        self._tokens = dict(tokens)
        self._to_text = _renderer(source)
        try:
            self._to_text(None)
        except (TemplateFailed, TemplateExceeded) as error:
            raise ModelFileError(f"{origin}: the chat template cannot be read: {error}") from None
        self._in_parts = False
        self._takes_system = True
        self._tried = False

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation, up to where the assistant speaks if `add_generation_prompt`.

        A system message that the template refuses or leaves out goes into the first user message, before an empty
        line. `variables` are what else this template knows (`enable_thinking=False`). Raises UsageError for messages
        that cannot be and ModelFileError for a template that does not work.
        """
        _check(messages)
        try:
            if not self._tried:
                self._try_out()
            if messages[0].role == "system" and not self._takes_system:
                messages = _folded(messages)
            text = self._render(messages, add_generation_prompt, variables)
        except TemplateRefused as error:
            raise UsageError(f"{self.origin}: the chat template refuses these messages: {error}") from None
        except (TemplateFailed, TemplateExceeded) as error:
            raise ModelFileError(f"{self.origin}: the chat template does not work: {error}") from None
        if not text:
            raise ModelFileError(f"{self.origin}: the chat template makes no text of these messages")
        return text

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of the tokens that end a turn in this template: to stop at, beside the model's own."""
        ids = [tokenizer.token_id(token) for token in _TURN_ENDS if token in self.source]
        return tuple(token_id for token_id in ids if token_id is not None)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        plain = [{"role": message.role, "content": self._content(message)} for message in messages]
        context = {"tools": None, "documents": None, **self._tokens, **variables}
        return self._to_text({**context, "messages": plain, "add_generation_prompt": add_generation_prompt})

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": message.content}] if self._in_parts else message.content

    def _try_out(self) -> None:
        """Find out what the template makes of messages: what it leaves out would be lost without a word.

        Templates of models that see pictures too may want the content in parts.
        """
        self._tried = True
        said = Message("user", _PROBE)
        if not self._writes([said]):
            self._in_parts = True
            self._in_parts = self._writes([said])
        self._takes_system = self._writes([Message("system", _PROBE), Message("user", "?")])

    def _writes(self, messages: Sequence[Message]) -> bool:
        """Tell whether the probe comes out of the template; some refuse, some are silent."""
        try:
            return _PROBE in self._render(messages, True, {})
        except (TemplateRefused, TemplateFailed):
            return False


def _renderer(source: str) -> Callable[[Mapping[str, Any] | None], str]:
    """Make a renderer of a template; without variables it only looks whether the template can be read.

    Our own templates are rendered here, others in a process of their own.
    """
    if source not in BUILT_IN.values():
        from hybrid.text.template_process import worker

        return lambda variables: worker.render(source, variables)
    from hybrid.text.jinja_sandbox import SandboxedTemplate

    template = SandboxedTemplate(source)
    return lambda variables: "" if variables is None else template.render(variables)


def expect_chat_template(model: Path, name: str | None = None) -> None:
    """Let the process that renders a stranger's template start, where `load_chat_template` will find one."""
    is_file = name is not None and name.endswith(".jinja")
    found = None if is_file else _in_folder(home_of(model)).get(name or "default")
    if is_file or (found is not None and found[0] not in BUILT_IN.values()):
        from hybrid.text.template_process import worker

        worker.start()


def load_chat_template(
    model: Path, tokenizer: Tokenizer, name: str | None = None, may_guess: bool = True
) -> ChatTemplate | None:
    """The chat template of a model folder; None when it has none and none can be guessed.

    `name` is one of those that the folder has, a built-in one, or a .jinja file. Without a name: the folder's
    `chat_template.jinja`, else the one in `tokenizer_config.json`, else a built-in one that fits the model. Without
    `may_guess` the last is left out: a base model looks like the chat model made from it.
    """
    home = home_of(model)
    tokens = tokenizer.special.in_templates()
    if name is not None and name.endswith(".jinja"):
        return ChatTemplate(_read_text(Path(name).expanduser()), tokens, name)
    found = _in_folder(home)
    wanted = name or "default"
    if wanted in found:
        source, origin = found[wanted]
        return ChatTemplate(source, tokens, origin)
    if name is None:
        name = _guess(home, tokenizer) if may_guess else None
        return ChatTemplate(BUILT_IN[name], tokens, f"the {name} template") if name else None
    if name not in BUILT_IN:
        known = ", ".join(sorted({*map(str, found), *BUILT_IN}))
        raise UsageError(f"chat-template {show(name)}: no such template; there are {known}, or give a .jinja file")
    return ChatTemplate(BUILT_IN[name], tokens, f"the {name} template")


def _in_folder(home: Path) -> dict[str, tuple[str, str]]:
    """The templates of a folder by name, with where they are; the usual one is "default"."""
    path = home / TOKENIZER_CONFIG
    value = read_json(path).get("chat_template") if path.is_file() else None
    listed = value if isinstance(value, list) else []
    named: dict[str, Any] = {"default": value} if isinstance(value, str) else {}
    for item in listed:
        if not (isinstance(item, dict) and isinstance(item.get("name"), str)):
            raise ModelFileError(f"{path}: chat_template holds {show(item)}, must be objects with name and template")
        named[item["name"]] = item.get("template")
    if value is not None and not isinstance(value, str | list):
        raise ModelFileError(f"{path}: chat_template is {show(value)}, must be text or a list of named templates")
    found = {}
    for name, source in named.items():
        if not isinstance(source, str):
            raise ModelFileError(f"{path}: chat_template {show(name)} is {show(source)}, must be text")
        found[name] = (source, str(path))
    if (home / TEMPLATE_FILE).is_file():
        found["default"] = (_read_text(home / TEMPLATE_FILE), str(home / TEMPLATE_FILE))
    return found


def _read_text(path: Path) -> str:
    try:
        with real_file(path).open("rb") as file:
            content = file.read(_MOST_FILE_BYTES)
        return content.decode()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: not UTF-8 at byte {error.start}") from None


def _guess(home: Path, tokenizer: Tokenizer) -> str | None:
    config = read_json(home / CONFIG) if (home / CONFIG).is_file() else {}
    resolved = home.resolve()
    in_cache = resolved.parent.name == "snapshots"  # of the Hugging Face cache: models--org--name/snapshots/<hash>
    model_name = resolved.parent.parent.name if in_cache else resolved.name
    tokens = {token: tokenizer.token_id(token) is not None for token in TELLING_TOKENS}
    return guess(tokens, str(config.get("model_type", "")), model_name)


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageError("a conversation needs at least one message")
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            raise UsageError(f"message {number} is by {show(message.role)}; must be one of {', '.join(ROLES)}")
        if message.role == "system" and number > 1:
            raise UsageError(f"message {number} is by system; only the first message can be")


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its system message at the beginning of the first user message."""
    system, *rest = messages
    if not rest or rest[0].role != "user":
        raise UsageError("this model has no system role; a user message must follow the system message to hold it")
    return [Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:]]
