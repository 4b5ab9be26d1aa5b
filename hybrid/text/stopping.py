"""The token ids that end a text: one rule for completions, conversations and Python."""

from collections.abc import Sequence

from hybrid.text.chat_template import ChatTemplate
from hybrid.text.generation_defaults import GenerationDefaults
from hybrid.text.tokenizer import Tokenizer


def end_ids(
    defaults: GenerationDefaults,
    model_ends: Sequence[int],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> tuple[int, ...]:
    """The ids to stop at, from the first that names any, as transformers generates.

    `defaults` are those of generation_config.json, or genai_config.json; `model_ends` those of config.json; then the
    tokenizer's own. A model that ends at none of its template's ends of turn would go on and play both parts, so
    those are added; where it names one itself, others of the template can stand in mid-reply and are left alone.
    """
    tokenizer_end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    ends = defaults.end_ids or tuple(model_ends) or tokenizer_end
    turn_ends = () if template is None else template.end_ids(tokenizer)
    return tuple(dict.fromkeys(ends if set(ends) & set(turn_ends) else (*ends, *turn_ends)))
