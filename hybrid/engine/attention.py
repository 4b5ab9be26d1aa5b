"""The attentions that run outside onnxruntime: from the names of their tensors to calls over their memory."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.engine.island import Value, array_of, value_of
from hybrid.errors import ModelFileError
from hybrid.graph.graph import ElementType
from hybrid.graph.program import OutsideAttention, Program
from hybrid.shown import show
from offload.host.attention import AttentionArrays, AttentionCall, HostAttention

Array = npt.NDArray[Any]


class AttentionBinder:
    """Makes calls for the attentions of a program, whose cache and tables stay where they are."""

    def __init__(self, program: Program, attention: HostAttention, cache: Mapping[str, Value]) -> None:
        """Compiles the kernels for the types of `cache`, about 3 s unless they are cached."""
        self._attention = attention
        outside = [attention for level in program.levels for attention in level.attentions]
        self._caches = {name: array_of(cache[name])[0] for a in outside for name in (a.past_key, a.past_value)}
        self._tables = {
            name: np.array(program.graph.initializers[name].array(), np.float32)
            for name in {name for a in outside for name in (a.cos, a.sin) if name}
        }
        attention.warm_up({array.dtype for array in self._caches.values()})

    def bind(self, outside: OutsideAttention, array: Callable[[str], Array], output: Array) -> AttentionCall:
        """A call that attends from the memory of `array(name)` into `output`, both with as many rows as new tokens.

        Raises ValueError for tensors that are not what their attention says.
        """
        spec = outside.spec
        query = _rows(array(outside.query))
        if outside.key:
            key, value = _rows(array(outside.key)), _rows(array(outside.value))
        else:
            widths = np.cumsum([spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim])
            query, key, value = np.split(query, widths, axis=1)
        arrays = AttentionArrays(
            query=query,
            key=key,
            value=value,
            keys=self._caches[outside.past_key],
            values=self._caches[outside.past_value],
            cos=self._tables[outside.cos] if outside.cos else None,
            sin=self._tables[outside.sin] if outside.sin else None,
            last_position=array(outside.lengths).reshape(-1),
            output=_rows(output),
        )
        return self._attention.bind(spec, arrays)


class StationAttention:
    """An attention at its station: bound once where all its tensors are in place, else at every step."""

    def __init__(
        self,
        attention: OutsideAttention,
        binder: AttentionBinder,
        bound: Mapping[str, Value],
        arrays: Mapping[str, Array],
    ) -> None:
        """`bound` are the tensors in place, and `arrays` those among them that have a buffer of the executor.

        Raises ModelFileError for tensors that are not what their attention says.
        """
        self._attention, self._binder, self._bound = attention, binder, bound
        self._output = arrays.get(attention.output)
        self._call: AttentionCall | None = None
        if self._output is not None and all(name in bound for name in attention.inputs):
            try:
                self._call = binder.bind(attention, lambda name: array_of(bound[name]), self._output)
            except ValueError as error:
                raise _refused(attention, error) from None

    def run(self, passing: dict[str, Value]) -> None:
        """Attend. What is not in place is read from `passing` and added to it.

        Raises ModelFileError for tensors that are not what their attention says.
        """
        try:
            if self._call is not None:
                self._call.run()
            else:
                self._run_anew(passing)
        except ValueError as error:
            raise _refused(self._attention, error) from None

    def _run_anew(self, passing: dict[str, Value]) -> None:
        attention, output = self._attention, self._output

        def array(name: str) -> Array:
            return array_of(self._bound[name] if name in self._bound else passing[name])

        if output is None:
            width = attention.spec.num_heads * attention.spec.head_dim
            output = np.empty((*array(attention.query).shape[:-1], width), np.float32)
            passing[attention.output] = value_of(output, ElementType.FLOAT)
        self._binder.bind(attention, array, output).run()


def _refused(attention: OutsideAttention, error: ValueError) -> ModelFileError:
    return ModelFileError(f"attention {show(attention.name)}: {error}")


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
