"""Headers of safetensors files: which tensor lies where. The elements themselves are never read here.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes, the header's length as a
little-endian unsigned number; the header, a JSON object `{name: {"dtype", "shape", "data_offsets": [begin,
end]}}` that starts with `{` and may end in spaces, with an optional `__metadata__`; then the data, offsets
counting from its first byte.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.graph.graph import ElementType
from hybrid.shown import show
from hybrid.source.folder import real_file
from offload.spec.units import counted
from offload.storage.weight_file import FileRange, WeightFile

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_MAX_DIMS = 16
_MAX_DIM = 2**48

_TYPES = {
    "BOOL": ElementType.BOOL,
    "U8": ElementType.UINT8,
    "I8": ElementType.INT8,
    "F8_E4M3": ElementType.FLOAT8E4M3FN,
    "F8_E4M3FNUZ": ElementType.FLOAT8E4M3FNUZ,
    "F8_E5M2": ElementType.FLOAT8E5M2,
    "F8_E5M2FNUZ": ElementType.FLOAT8E5M2FNUZ,
    "F4": ElementType.FLOAT4E2M1,
    "U16": ElementType.UINT16,
    "I16": ElementType.INT16,
    "F16": ElementType.FLOAT16,
    "BF16": ElementType.BFLOAT16,
    "U32": ElementType.UINT32,
    "I32": ElementType.INT32,
    "F32": ElementType.FLOAT,
    "U64": ElementType.UINT64,
    "I64": ElementType.INT64,
    "F64": ElementType.DOUBLE,
    "C64": ElementType.COMPLEX64,
}
_UNSUPPORTED = ("F6_E2M3", "F6_E3M2", "F8_E8M0")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `source` names the real file; its offset may be any, aligned or not."""

    dtype: ElementType
    shape: tuple[int, ...]
    source: FileRange


def read_index(files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> dict[str, StoredTensor]:
    """Every tensor of the files, in the files' order. Reads headers only.

    `weight_map` names the file of a tensor that is in several. Raises ModelFileError when a file lies about itself,
    and when two files hold a tensor whose file is not named; UnsupportedModelError for element types that ONNX cannot
    name.
    """
    index: dict[str, StoredTensor] = {}
    home: dict[str, Path] = {}
    for path in files:
        for name, tensor in _read_header(path).items():
            if name in index:
                named = (weight_map or {}).get(name)
                if named not in (path.name, home[name].name):
                    raise ModelFileError(f"{show(path)}: tensor {show(name)} is also in {show(Path(home[name].name))}")
                if named != path.name:
                    continue
            index[name] = tensor
            home[name] = path
    if files and not index:
        raise ModelFileError(f"{show(files[0])}: holds no tensors")
    return index


def misplaced(index: Mapping[str, StoredTensor], files: Sequence[Path], weight_map: Mapping[str, str]) -> list[str]:
    """The tensors of an index of these files that `weight_map` says to be in another one."""
    names: dict[Path, set[str]] = {}
    for path in files:
        names.setdefault(real_file(path), set()).add(path.name)
    return [
        name
        for name, tensor in index.items()
        if name in weight_map and weight_map[name] not in names[tensor.source.path]
    ]


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        weights = WeightFile.at(real_file(path))
        size = weights.identity.nbytes
        with weights.path.open("rb") as file:
            prefix = file.read(8)
            if prefix == b"version ":
                raise ModelFileError(f"{show(path)}: a Git LFS pointer, not the weights; run `git lfs pull`")
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ModelFileError(
                    f"{show(path)}: header of {counted(length, 'byte')} in a file of {size:,}: "
                    "truncated or no safetensors"
                )
            header = file.read(length)
    except OSError as error:
        raise ModelFileError(f"{show(path)}: cannot be read ({error.strerror})") from None
    if len(header) < length:
        raise ModelFileError(f"{show(path)}: truncated: {len(header):,} of {counted(length, 'header byte')}")
    tensors: dict[str, StoredTensor] = {}
    for name, entry in _parse_header(path, header).items():
        if name != "__metadata__":
            tensors[name] = _tensor(path, weights, name, entry, 8 + length, size - 8 - length)
    _check_overlap(path, tensors)
    return tensors


def _parse_header(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ModelFileError(f"{show(path)}: the header has {show(twice)} twice")
        return table

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise ModelFileError(f"{show(path)}: the header is not valid JSON; not a safetensors file?") from None
    if not isinstance(parsed, dict) or not header.startswith(b"{"):
        raise ModelFileError(f"{show(path)}: the header must be a JSON object that starts at its first byte")
    return parsed


def _tensor(path: Path, file: WeightFile, name: str, entry: object, data_start: int, data_bytes: int) -> StoredTensor:
    where = f"{show(path)}: tensor {show(name)}"
    if not isinstance(entry, dict):
        raise ModelFileError(f"{where} is {show(entry)}, must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if isinstance(dtype, str) and dtype in _UNSUPPORTED:
        raise UnsupportedModelError(f"{where} has dtype {dtype}, a quantised type that is not supported")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ModelFileError(f"{where} has dtype {show(dtype)}, must be one of {', '.join(_TYPES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_is_count(dim, _MAX_DIM) for dim in shape):
        raise ModelFileError(f"{where} has shape {show(shape)}, must be a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(end, data_bytes) for end in offsets):
        raise ModelFileError(
            f"{where} has data_offsets {show(offsets)}, must lie within {counted(data_bytes, 'data byte')}"
        )
    begin, end = offsets
    bits = prod(shape) * _TYPES[dtype].bits
    if (end - begin) * 8 != bits:
        raise ModelFileError(
            f"{where} has {counted(end - begin, 'byte')} at data_offsets {show(offsets)},"
            f" its shape {show(shape)} in {dtype} takes {bits // 8:,}"
        )
    return StoredTensor(_TYPES[dtype], tuple(shape), FileRange(file, data_start + begin, end - begin))


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _check_overlap(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """Two tensors must not share bytes. Holes between them are fine."""
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].source.offset, item[1].source.nbytes)):
        if tensor.source.nbytes and tensor.source.offset < end:
            raise ModelFileError(f"{show(path)}: tensors {show(before)} and {show(name)} overlap")
        if tensor.source.nbytes:
            end, before = tensor.source.offset + tensor.source.nbytes, name
