"""Answers what begins with a slash: commands."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from hybrid.chat.conversation import RETRY_TEMPERATURE, Conversation
from hybrid.chat.reply import Reply, ReplyStats
from hybrid.chat.rules import changed, shown
from hybrid.text.generate import StopReason
from offload.spec.units import counted

COMMANDS = {
    "/clear": ("", "forget the conversation; the system message stays"),
    "/undo": ("", "take the last turn back"),
    "/retry": ("", "another reply to the last message"),
    "/set": ("[NAME VALUE]", "show how replies are made, or change it: temperature 0.8, max-tokens 200"),
    "/system": ("[TEXT]", "show the system message, or set it; - removes it"),
    "/stats": ("", "tokens and speed so far"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a conversation that was saved"),
    "/help": ("", "this"),
    "/exit": ("", "leave; Ctrl-D does too"),
}
KEYS = """\
Enter sends. Alt-Enter, or \\ at the end of a line, begins a new one.
Ctrl-C ends a reply. What begins with a slash is a command, or a path if it has more slashes; a space before it sends
it as text."""

_STOPPED = {
    StopReason.MAX_TOKENS: "stopped at --max-tokens",
    StopReason.CONTEXT: "stopped, context full",
    StopReason.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Outcome:
    """The result of a command: a text for people, a reply to show, or the wish to leave."""

    text: str = ""
    reply: Reply | None = None
    leave: bool = False


def is_command(line: str) -> bool:
    """Tell whether a line is for us and not for the model; a path such as /etc/hosts is not."""
    return re.match(r"/\w*(\s|$)", line) is not None


def run_command(conversation: Conversation, line: str, model: str = "") -> Outcome:
    """Do what a line says. Raises OffloadError for what cannot be done."""
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    match name:
        case "/exit" | "/quit":
            return Outcome(leave=True)
        case "/help" | "/":
            return Outcome(_help())
        case "/clear":
            conversation.clear()
            return Outcome("the conversation is forgotten" + (", the system message stays" * bool(conversation.system)))
        case "/undo":
            return Outcome(f"taken back: {_beginning(conversation.undo())}")
        case "/retry":
            reply = conversation.retry()
            greedy = conversation.rules.sampling.temperature == 0
            tried = f"at temperature 0 the reply would be the same, so this one is drawn at {RETRY_TEMPERATURE}"
            return Outcome(tried if greedy else "", reply)
        case "/set":
            return Outcome(_set(conversation, argument))
        case "/system":
            return Outcome(_system(conversation, argument))
        case "/stats":
            return Outcome(_stats(conversation))
        case "/save" | "/load" if not argument:
            return Outcome(f"{name} needs the name of a file")
        case "/save":
            path = Path(argument).expanduser()
            conversation.save(path, model)
            return Outcome(f"{_messages(len(conversation.messages))} saved to {path}")
        case "/load":
            conversation.load(Path(argument).expanduser())
            return Outcome(f"{_messages(len(conversation.messages))} loaded")
    near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
    return Outcome(f"there is no {name}; " + (f"did you mean {near[0]}?" if near else "/help shows what there is"))


def status_line(stats: ReplyStats) -> str:
    """Describe what a reply took: speed, tokens reused and run, how full the context is."""
    from hybrid.show.report import rate

    used = f"context {stats.context_used} of {stats.context_tokens}"
    run = f"{stats.reused_tokens} reused + {stats.prefilled_tokens} prefilled"
    speed = [rate(stats.decode_tokens_per_s)] if stats.decode_tokens_per_s else []
    reason = [_STOPPED[stats.stop_reason]] if stats.stop_reason in _STOPPED else []
    return " · ".join([*speed, run, used, *reason])


def left_out_line(count: int) -> str:
    """Says that the oldest messages no longer fit."""
    return f"context full: the model no longer sees the oldest {_messages(count)}"


def _help() -> str:
    width = max(len(f"{name} {argument}") for name, (argument, _) in COMMANDS.items())
    lines = [f"{f'{name} {argument}':{width}}  {what}" for name, (argument, what) in COMMANDS.items()]
    return "\n".join([*lines, KEYS])


def _system(conversation: Conversation, text: str) -> str:
    if text:
        conversation.system = None if text == "-" else text
        return "system message set" if conversation.system else "system message removed"
    return conversation.system or "there is no system message; /system TEXT sets one"


def _set(conversation: Conversation, argument: str) -> str:
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if not name:
        return shown(conversation.rules)
    if name.removeprefix("--") == "system":
        return _system(conversation, value.strip())
    conversation.rules = changed(conversation.rules, name, value.strip())
    return f"{name} is {value.strip()} from now on"


def _stats(conversation: Conversation) -> str:
    engine = conversation.engine
    lines = [f"{_messages(len(conversation.messages))} · context {engine.position} of {engine.context_tokens}"]
    if conversation.left_out:
        lines.append(left_out_line(conversation.left_out))
    if stats := conversation.last_stats:
        lines.append(f"last reply: {counted(stats.generated_tokens, 'token')} · {status_line(stats)}")
        lines.append(f"its prompt: {counted(stats.prefilled_tokens, 'token')} prefilled in {stats.prefill_s:.2f} s")
    return "\n".join(lines)


def _messages(count: int) -> str:
    return counted(count, "message")


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
