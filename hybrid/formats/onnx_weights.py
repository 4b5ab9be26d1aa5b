"""Locates the weights inside an .onnx file: the file without its weights, and the byte range of each.

An .onnx file is one protobuf message (https://protobuf.dev/programming-guides/encoding/), and a weight stored
inline is a plain run of bytes in it. Parsing the whole file would put every weight in RAM twice; so the file is
memory-mapped and walked once, and the weights are left where they are.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import ModelFileError
from offload.storage.weight_file import FileRange, WeightFile

SMALL_TENSOR_BYTES = 1024  # smaller tensors stay in the message: shapes, axes, scalars

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_NAME = 8
_TENSOR_RAW_DATA = 9

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Field:
    number: int
    start: int  # of the tag
    body: int  # of the value, behind the tag and the length
    stop: int


def strip_weights(path: Path) -> tuple[bytes, dict[str, FileRange]]:
    """Return the model message without its large inline tensors, and the byte range of each of those by name.

    Raises ModelFileError when the file is empty or its messages do not nest within their bounds.
    """
    weights = WeightFile.at(path)
    if weights.identity.nbytes == 0:
        raise ModelFileError(f"{path}: the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ranges: dict[str, FileRange] = {}
        try:
            parts = [
                _strip_graph(data, field, weights, ranges)
                if field.number == _MODEL_GRAPH
                else data[field.start : field.stop]
                for field in _fields(data, 0, len(data))
            ]
        except (IndexError, ValueError) as error:
            raise ModelFileError(f"{path}: not an ONNX file, or a truncated one: {error}") from None
        return b"".join(parts), ranges


def _strip_graph(data: mmap.mmap, graph: _Field, file: WeightFile, ranges: dict[str, FileRange]) -> bytes:
    parts = [
        _strip_tensor(data, field, file, ranges)
        if field.number == _GRAPH_INITIALIZER
        else data[field.start : field.stop]
        for field in _fields(data, graph.body, graph.stop)
    ]
    return _message(_MODEL_GRAPH, b"".join(parts))


def _strip_tensor(data: mmap.mmap, tensor: _Field, file: WeightFile, ranges: dict[str, FileRange]) -> bytes:
    fields = list(_fields(data, tensor.body, tensor.stop))
    raw = [field for field in fields if field.number == _TENSOR_RAW_DATA]
    if not raw or raw[-1].stop - raw[-1].body < SMALL_TENSOR_BYTES:
        return data[tensor.start : tensor.stop]
    name = next((data[f.body : f.stop].decode("utf-8") for f in fields if f.number == _TENSOR_NAME), "")
    ranges[name] = FileRange(file, raw[-1].body, raw[-1].stop - raw[-1].body)
    rest = b"".join(data[field.start : field.stop] for field in fields if field.number != _TENSOR_RAW_DATA)
    return _message(_GRAPH_INITIALIZER, rest)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[_Field]:
    position = start
    while position < stop:
        tag, body = _varint(data, position, stop)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, end = _varint(data, body, stop)
        elif wire_type == _LENGTH_DELIMITED:
            length, body = _varint(data, body, stop)
            end = body + length
        elif wire_type in (_FIXED64, _FIXED32):
            end = body + (8 if wire_type == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if end > stop:
            raise ValueError(f"the field at byte {position} ends at {end}, past its bound {stop}")
        yield _Field(tag >> 3, position, body, end)
        position = end


def _varint(data: mmap.mmap, position: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= stop or shift > 63:
            raise ValueError(f"a number that does not end at byte {position}")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _message(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH_DELIMITED) + _encode_varint(len(body)) + body


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
