"""Open a model: a folder or an .onnx file to a `Decoder`."""

from dataclasses import replace
from pathlib import Path

from hybrid.errors import UsageError
from hybrid.graph.decoder import MAX_CONTEXT_TOKENS, Decoder
from hybrid.source.folder import find_model
from offload.spec.units import counted

DEFAULT_CONTEXT_TOKENS = 2048  # the cache is reserved for this many, not for all the positions a model knows


def open_model(path: Path, context_tokens: int | None, allow_unused: bool = False) -> tuple[Decoder, int]:
    """The decoder in `path`, and the tokens that its context holds in this run.

    Opens headers only; see `open_huggingface` for `allow_unused`. Raises ModelError for a model that cannot be used,
    UsageError for a context that the model was not made for.
    """
    if context_tokens is not None and not 1 <= context_tokens <= MAX_CONTEXT_TOKENS:
        raise UsageError(f"--context {context_tokens}: must be between 1 and {MAX_CONTEXT_TOKENS} tokens")
    asked = context_tokens or DEFAULT_CONTEXT_TOKENS
    decoder = _open(path, asked, allow_unused)
    limit = decoder.most_context_tokens
    why = f" ({decoder.limited_by})" if decoder.limited_by else ""
    if context_tokens is not None and asked > limit:
        raise UsageError(f"--context {asked}: this model was made for at most {counted(limit, 'position')}{why}")
    if asked > limit and why:
        note = f"the context is {counted(limit, 'token')}: this model was made for no more{why}"
        decoder = replace(decoder, notes=(*decoder.notes, note))
    return decoder, min(asked, limit)


def _open(path: Path, context_tokens: int, allow_unused: bool) -> Decoder:
    source = find_model(path)
    if source.kind == "onnx":
        from hybrid.formats.onnx_decoder import open_onnx

        return open_onnx(source, context_tokens)
    from hybrid.families import open_huggingface

    return open_huggingface(source, context_tokens, allow_unused)
