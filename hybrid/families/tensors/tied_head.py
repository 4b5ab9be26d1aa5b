"""Models whose head is the embedding: their files may hold both, either, or two that differ."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.tensors.tensor_source import EMBEDDING, HEAD
from hybrid.formats.safetensors import StoredTensor

_CHUNK_BYTES = 4 << 20

DIFFERS = (
    f"{HEAD} is used: it is not {EMBEDDING}, although tie_word_embeddings in config.json says that the head is"
    " the embedding"
)


def resolve_tied_head(
    config: DecoderConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[DecoderConfig, dict[str, StoredTensor]]:
    """Untie a head that differs from the embedding, and let a head alone be the embedding, as transformers does.

    Reads both, where there are both, until they differ. Raises OffloadError for files that changed or cannot be read.
    """
    found = dict(tensors)
    if not config.tie_word_embeddings or HEAD not in found:
        return config, found
    if EMBEDDING not in found:
        found[EMBEDDING] = found.pop(HEAD)
    elif not _equal(found[EMBEDDING], found[HEAD]):
        config = replace(config, tie_word_embeddings=False, notes=(*config.notes, DIFFERS))
    return config, found


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    one, other = first.source, second.source
    for start in range(0, one.nbytes, _CHUNK_BYTES):
        chunks = np.empty((2, min(_CHUNK_BYTES, one.nbytes - start)), np.uint8)
        for tensor, chunk in zip((one, other), chunks, strict=True):
            tensor.file.read(tensor.offset + start, chunk)
        if not np.array_equal(*chunks):
            return False
    return True
