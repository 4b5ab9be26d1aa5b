"""Turns of a conversation as token ids, so that the cache keeps what it already holds."""

from collections.abc import Sequence

from hybrid.text.tokenizer import Tokenizer


def encode_turn(tokenizer: Tokenizer, rendered: str, past_ids: Sequence[int] = (), past_text: str = "") -> list[int]:
    """Ids of a rendered conversation that begin with the ids of its past, whenever that is possible.

    `past_text` is the previous render followed by the reply as it was generated, and `past_ids` what stands for it:
    the ids that were run and generated. Text can have several spellings in ids, so encoding a reply again need not
    give the ids that were generated. They are kept where the new render goes on from the old text with a special
    token, at which no spelling can join; else all is encoded anew, and `common_prefix` tells how much is still good.

    No begin token is added: templates write it themselves. Special tokens are parsed in the whole render, as in
    transformers, in what a user wrote too.
    """
    if past_text and rendered.startswith(past_text):
        ids = tokenizer.encode(rendered[len(past_text) :], add_bos=False, parse_special=True)
        if ids and tokenizer.is_hidden(ids[0]):
            return [*past_ids, *ids]
    return tokenizer.encode(rendered, add_bos=False, parse_special=True)
