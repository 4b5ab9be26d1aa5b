"""Small damage to files: in their bytes, their JSON, or their protobuf messages. All chance is the caller's."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import onnx

_NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), 10**400)
_FLOATS = (0.0, -0.0, 1e-320, 1e-9, 0.5, 1e9, 1e308, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "x", "\ud800", "\0", "../x", "/etc/passwd", "é" * 50, "a" * 20000, "\x1b[2J", "0x1", "1e400", "‮")


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes with a few of them changed, dropped, put in or repeated."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(data) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64, 1024))
        match random.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = random.randbytes(min(length, 64))
            case 4:
                data[at:at] = data[at : at + length] * random.choice((1, 2, 50))
            case 5 if random.random() < 0.2:
                del data[at:]
    return bytes(data)


def damaged_text(content: bytes, words: tuple[str, ...], random: Random) -> bytes:
    """Like `damaged`, or with one of `words` somewhere."""
    if random.random() < 0.4:
        return damaged(content, random)
    text = content.decode()
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(words) + text[at + random.choice((0, 0, 1, 5, 30)) :]
    return text.encode("utf-8", "surrogatepass")


def damaged_json(content: bytes, random: Random) -> bytes:
    """A JSON text with values replaced, left out, renamed or nested; sometimes only its bytes are damaged."""
    if random.random() < 0.25:
        return damaged(content, random)
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _change(value, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.02:
        text = text.replace(":", ":" + "[" * 50_000, 1)
    return text.encode("utf-8", "surrogatepass")


def _change(value: Any, random: Random) -> Any:
    """Change one place of a value, found by walking down by chance."""
    if isinstance(value, dict) and value and random.random() < 0.95:
        key = random.choice(list(value))
        changed = dict(value)
        match random.randrange(12):
            case 0:
                del changed[key]
            case 1:
                changed[random.choice((*_TEXTS, *value))] = changed.pop(key)
            case 2:
                changed[random.choice(_TEXTS)] = _odd(random)
            case _:
                changed[key] = _change(value[key], random)
        return changed
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        match random.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + value[at : at + 1] * random.choice((2, 100)) + value[at:]
            case _:
                return [*value[:at], _change(value[at], random), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.5:
        near = (value + 1, value - 1, -value, value * 2, value * 65536, value % 1000 / 2)
        return random.choice((*near, str(value), [value]))
    return _odd(random)


def _odd(random: Random) -> Any:
    simple: tuple[Callable[[], Any], ...] = (
        lambda: random.choice(_NUMBERS),
        lambda: random.choice(_FLOATS),
        lambda: random.choice(_TEXTS),
        lambda: random.choice((None, True, False, [], {}, [[]], {"": None}, [None] * 50)),
    )
    return random.choice(simple)()


def damaged_onnx(content: bytes, random: Random) -> bytes:
    """An ONNX model with nodes, names, attributes, sizes or weights that are not what they were."""
    if random.random() < 0.3:
        return damaged(content, random)
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _damage_graph(model, random)
    return bytes(model.SerializeToString())


def _damage_graph(model: onnx.ModelProto, random: Random) -> None:
    graph = model.graph
    node = random.choice(graph.node) if graph.node else onnx.NodeProto()
    tensor = random.choice(graph.initializer) if graph.initializer else onnx.TensorProto()
    info = random.choice([*graph.input, *graph.output] or [onnx.ValueInfoProto()])
    names = [name for other in graph.node for name in (*other.input, *other.output)] + [
        t.name for t in graph.initializer
    ]
    number = random.choice((-1, 0, 1, 2, 3, 16, 64, 2**31, 2**40, 2**62, -(2**63)))
    match random.randrange(17):
        case 0 if graph.node:
            del graph.node[random.randrange(len(graph.node))]
        case 1:
            graph.node.add().CopyFrom(node)
        case 2 if len(graph.node) > 1:
            first = onnx.NodeProto.FromString(node.SerializeToString())
            other = random.choice(graph.node)
            node.CopyFrom(other)
            other.CopyFrom(first)
        case 3 if node.input:
            node.input[random.randrange(len(node.input))] = random.choice([*names, "", "x" * 300])
        case 4 if node.input:
            del node.input[random.randrange(len(node.input)) :]
        case 5:
            node.input.append(random.choice([*names, ""]))
        case 6 if node.output:
            node.output[random.randrange(len(node.output))] = random.choice([*names, "", "new"])
        case 7:
            node.op_type = random.choice(
                [other.op_type for other in graph.node] + ["", "Loop", "Cast", "Expand", "Range"]
            )
        case 8:
            node.domain = random.choice(("", "ai.onnx", "com.microsoft", "own"))
        case 9 if node.attribute:
            attribute = random.choice(node.attribute)
            attribute.i = number
            attribute.f = random.choice(_FLOATS)
            attribute.type = random.choice((attribute.type, attribute.type, 1, 2, 3, 7, 13))
        case 10 if node.attribute:
            del node.attribute[random.randrange(len(node.attribute))]
        case 11:
            node.attribute.add(
                name=random.choice(("axis", "to", "num_heads", "perm")), type=random.choice((2, 7)), i=number
            )
        case 12 if tensor.dims:
            tensor.dims[random.randrange(len(tensor.dims))] = number
        case 13:
            tensor.data_type = random.randrange(30)
        case 14 if tensor.external_data:
            random.choice(tensor.external_data).value = random.choice(
                (str(number), "", "x", "\0", "../x", "/etc/passwd", "model.data")
            )
        case 15 if tensor.raw_data:
            tensor.raw_data = damaged(tensor.raw_data, random)
        case 16 if info.type.tensor_type.shape.dim:
            dim = random.choice(info.type.tensor_type.shape.dim)
            dim.dim_value = number
            info.type.tensor_type.elem_type = random.choice((info.type.tensor_type.elem_type, random.randrange(30)))


def damaged_safetensors(content: bytes, random: Random) -> bytes:
    """A safetensors file with another header; its length is mostly right."""
    if random.random() < 0.3:
        return damaged(content, random)
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(content[8 : 8 + length], random)
    told = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63, len(header) + 1))
    return told.to_bytes(8, "little") + header + content[8 + length :]
