"""Which memory the tensors between islands use: a few buffers, each handed on when its tensor has been read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from hybrid.graph.graph import ElementType, Shape
from hybrid.graph.program import Program

_PASSED_TYPES = (
    ElementType.FLOAT,
    ElementType.FLOAT16,
    ElementType.INT64,
    ElementType.INT32,
    ElementType.BOOL,
)


@dataclass(frozen=True)
class TensorBuffer:
    """The place of a tensor: the buffer's number, and the tensor's type and shape in numbers and "S"."""

    slot: int
    element_type: ElementType
    shape: Shape

    def shape_for(self, new_tokens: int) -> tuple[int, ...]:
        """The shape in numbers for a step of `new_tokens`."""
        return tuple(new_tokens if dim == "S" else int(dim or 0) for dim in self.shape)

    def nbytes_for(self, new_tokens: int) -> int:
        """Bytes for a step of `new_tokens`."""
        return prod(self.shape_for(new_tokens)) * self.element_type.bits // 8


@dataclass(frozen=True)
class BufferPlan:
    """A buffer for every tensor between islands whose size follows from the number of new tokens alone."""

    tensors: dict[str, TensorBuffer]
    slots: int

    def slot_bytes(self, new_tokens: int) -> list[int]:
        """The size of each buffer for a step of `new_tokens`."""
        sizes = [0] * self.slots
        for tensor in self.tensors.values():
            sizes[tensor.slot] = max(sizes[tensor.slot], tensor.nbytes_for(new_tokens))
        return sizes


def plan_buffers(program: Program) -> BufferPlan:
    """Assign buffers greedily in running order. Tensors of other sizes are left to onnxruntime."""
    free: dict[int, list[int]] = {}  # by bytes for one token, so that a buffer fits its next tensor
    tensors: dict[str, TensorBuffer] = {}
    slots = 0
    cached = {info.name for info in program.outputs if info.name != "logits"}
    for number, level in enumerate(program.levels):
        island_outputs = [info.name for info in level.island.outputs] if level.island else []
        attended = [attention.output for attention in level.attentions]
        for name in (*island_outputs, *attended, *(linear.output for linear in level.linears)):
            shape = program.shape(name)
            if name in cached or not _follows_new_tokens(shape) or program.element_type(name) not in _PASSED_TYPES:
                continue
            assert shape is not None
            size = TensorBuffer(0, program.element_type(name), shape).nbytes_for(1)
            reusable = free.setdefault(size, [])
            if not reusable:
                reusable.append(slots)
                slots += 1
            tensors[name] = TensorBuffer(reusable.pop(), program.element_type(name), shape)
        for name in _last_read_at(program, tensors, number):
            free[tensors[name].nbytes_for(1)].append(tensors[name].slot)
    return BufferPlan(tensors, slots)


def _follows_new_tokens(shape: Shape | None) -> bool:
    return shape is not None and all(isinstance(dim, int) or dim == "S" for dim in shape)


def _last_read_at(program: Program, tensors: Iterable[str], level: int) -> Sequence[str]:
    return [name for name in tensors if program.last_use.get(name) == level]
