"""Models whose head is the embedding: their files may hold both, either, or two that differ."""

import os
from collections.abc import Mapping
from dataclasses import replace

from hybrid.errors import ModelFileError
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.tensors.tensor_source import EMBEDDING, HEAD
from hybrid.formats.safetensors import StoredTensor
from hybrid.shown import show
from offload.storage.weight_file import FileRange

_CHUNK_BYTES = 4 << 20

DIFFERS = (
    f"{HEAD} is used: it is not {EMBEDDING}, although tie_word_embeddings in config.json says that the head is"
    " the embedding"
)


def resolve_tied_head(
    config: DecoderConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[DecoderConfig, dict[str, StoredTensor]]:
    """Untie a head that differs from the embedding, and let a head alone be the embedding, as transformers does.

    Reads both, where there are both, until they differ. Raises ModelFileError when that fails.
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
    try:
        with one.path.open("rb", 0) as a, other.path.open("rb", 0) as b:
            for done in range(0, one.nbytes, _CHUNK_BYTES):
                size = min(_CHUNK_BYTES, one.nbytes - done)
                if _read(a.fileno(), one, done, size) != _read(b.fileno(), other, done, size):
                    return False
    except OSError as error:
        raise ModelFileError(f"{show(one.path)}: cannot be read ({error.strerror})") from None
    return True


def _read(descriptor: int, where: FileRange, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, where.offset + start)
    if len(data) < size:
        raise ModelFileError(f"{show(where.path)}: truncated: ends before byte {where.offset + start + size}")
    return data
