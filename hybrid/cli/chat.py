"""`hybrid chat`: a conversation."""

import sys

from hybrid.cli.early_checks import check_early
from hybrid.cli.flag_values import run_settings, sampling_values, shaping_without_effect
from hybrid.cli.flags import ChatFlags
from hybrid.show.console import note_between, say
from hybrid.show.progress import ProgressLine

EXAMPLES = """\
hybrid chat --model TinyLlama/TinyLlama-1.1B-Chat-v1.0
hybrid chat --model ~/models/mistral-7b --cuda 6 --system "Answer in one sentence."
printf 'Hello\\nAnd in French?\\n' | hybrid chat --model ~/models/mistral-7b
"""


def chat(flags: ChatFlags) -> int:
    """Talk with a model. /help in the chat lists its commands; Ctrl-C ends a reply, Ctrl-D the chat."""
    asked = sampling_values(flags)
    settings = run_settings(flags)
    stop = tuple(flags.stop or ())
    check_early(settings, asked, stop, flags.chat_template)
    with ProgressLine(sys.stderr) as progress:
        from hybrid.chat.opening import find_template, open_conversation
        from hybrid.chat.terminal import chat as talk
        from hybrid.show import report
        from hybrid.show.disk_text import without_disk
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.text_model import open_text_model

        text_model = open_text_model(settings, progress=progress)
    with text_model:
        engine, tokenizer = text_model.engine, text_model.tokenizer
        folder = engine.decoder.folder
        template, line = find_template(folder, tokenizer, flags.chat_template)
        sampling = merge_sampling(text_model.defaults.sampling, **asked)
        conversation = open_conversation(
            engine, tokenizer, folder, template, sampling, flags.max_tokens, stop, flags.system
        )
        say(report.opening_lines(engine, flags.cuda))
        for note in (
            *tokenizer.notes,
            *text_model.defaults.notes,
            *shaping_without_effect(flags, sampling.temperature),
            *without_disk(engine.plan, engine.plan.warnings),
        ):
            say(f"note: {note}")
        engine.on_warning = note_between
        say(line)
        return talk(conversation, engine.decoder.name)
