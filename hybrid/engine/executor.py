"""The step: one walk of the program, level by level."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.engine.attention import AttentionBinder, StationAttention
from hybrid.engine.buffers import BufferPlan, plan_buffers
from hybrid.engine.island import IslandBinding, LoadedIsland, Value, array_of, constant_value, value_of
from hybrid.graph.graph import ElementType
from hybrid.graph.program import OutsideAttention, OutsideLinear, Program, ProgramLevel
from offload.observe.timeline import Operator, Timeline, span
from offload.run.recovery import RecoveringLinears


class Executor:
    """Runs a program. Shapes that depend on new tokens alone are bound once, for one token and for one chunk."""

    def __init__(
        self,
        program: Program,
        islands: Sequence[LoadedIsland | None],
        linears: RecoveringLinears,
        attentions: AttentionBinder | None,
        cache: Mapping[str, Value],
        timeline: Timeline | None,
    ) -> None:
        """`cache` holds the tensors, inputs and outputs by name, that stay in one place for the whole run.

        `attentions` may be None where the program has no attention outside its islands.
        """
        self._program = program
        self._islands = islands
        self._linears = linears
        self._attentions = attentions
        self._fixed = dict(cache) | {name: constant_value(c) for name, c in program.constants.items()}
        self._buffers = plan_buffers(program)
        self._steps: dict[int, _BoundProgram] = {}
        self._timeline = timeline

    def run(
        self, new_tokens: int, inputs: Mapping[str, Value], check: Callable[[], None] = lambda: None
    ) -> dict[str, Value]:
        """One step over `new_tokens` tokens. Gives every output that is not part of the fixed cache.

        `check` is called between levels, and may raise to end the step: it can be run again.
        What comes back in a buffer of the executor ("logits") is valid until the next step.
        """
        if new_tokens not in self._steps:
            self._steps = {count: step for count, step in self._steps.items() if count == 1}
            self._steps[new_tokens] = _BoundProgram(
                self._program,
                self._islands,
                self._linears,
                self._attentions,
                self._fixed,
                self._buffers,
                new_tokens,
            )
        return self._steps[new_tokens].run(inputs, self._timeline, check)

    def bind_anew(self) -> None:
        """Forget what is bound: a run that was torn may have left it in any state."""
        self._steps = {}

    def drop_mapped_pages(self) -> None:
        """Release the pages of tables and parameters that the steps so far have touched in mapped files."""
        for loaded in self._islands:
            if loaded is not None:
                loaded.drop_mapped_pages()


class _BoundProgram:
    """The program bound for one number of new tokens."""

    def __init__(
        self,
        program: Program,
        islands: Sequence[LoadedIsland | None],
        linears: RecoveringLinears,
        attentions: AttentionBinder | None,
        fixed: Mapping[str, Value],
        buffers: BufferPlan,
        new_tokens: int,
    ) -> None:
        memory = [np.empty(nbytes, np.uint8) for nbytes in buffers.slot_bytes(new_tokens)]  # [slot bytes] each
        self._arrays = {
            name: memory[tensor.slot][: tensor.nbytes_for(new_tokens)]
            .view(tensor.element_type.storage_dtype)
            .reshape(tensor.shape_for(new_tokens))  # [1, M, width] mostly, M new tokens
            for name, tensor in buffers.tensors.items()
        }
        values = {name: value_of(array, program.element_type(name)) for name, array in self._arrays.items()}
        bound = {**fixed, **values}
        self._stations = [
            _Station(number, level, loaded, linears, attentions, bound, self._arrays, keeps_inputs=new_tokens == 1)
            for number, (level, loaded) in enumerate(zip(program.levels, islands, strict=True))
        ]
        self._kept = {info.name: bound[info.name] for info in program.outputs if info.name in values}
        self._wanted = [info.name for info in program.outputs if info.name not in bound]
        self._expired = [
            [name for name, last in program.last_use.items() if last == number and name not in bound]
            for number in range(len(program.levels))
        ]

    def run(
        self, inputs: Mapping[str, Value], timeline: Timeline | None, check: Callable[[], None]
    ) -> dict[str, Value]:
        passing = dict(inputs)  # tensors whose size changes from step to step
        for station, expired in zip(self._stations, self._expired, strict=True):
            check()
            station.run(passing, timeline)
            for name in expired:
                passing.pop(name, None)
        return self._kept | {name: passing[name] for name in self._wanted}


class _Station:
    """One level, bound: which tensors are already in place and which have to be passed on."""

    def __init__(
        self,
        number: int,
        level: ProgramLevel,
        loaded: LoadedIsland | None,
        linears: RecoveringLinears,
        attentions: AttentionBinder | None,
        bound: Mapping[str, Value],
        arrays: Mapping[str, npt.NDArray[Any]],
        keeps_inputs: bool,
    ) -> None:
        """Inputs of one token are small, and `keeps_inputs` saves releasing them after every run."""
        self._keeps_inputs = keeps_inputs
        self._number = number
        self._linears = linears
        self._arrays = arrays
        self._binding: IslandBinding | None = None
        self._passed: list[str] = []
        self._operator = self._what = ""
        if loaded is not None:
            self._operator = Operator.ATTENTION if loaded.island.is_attention else Operator.ISLAND
            self._what = ", ".join(loaded.island.op_types)
            self._binding = loaded.bind()
            for info in loaded.island.inputs:
                if info.name in bound:
                    self._binding.feed(info.name, bound[info.name])
                else:
                    self._passed.append(info.name)
            for info in loaded.island.outputs:
                if info.name in bound:
                    self._binding.write_to(info.name, bound[info.name])
        self._attentions = [_attention(attention, attentions, bound, arrays) for attention in level.attentions]
        in_place = all(linear.input in arrays and linear.output in arrays for linear in level.linears)
        self._variable = () if in_place else level.linears
        self._fixed = level.linears if in_place else ()
        self._inputs = {linear.group: _rows(arrays[linear.input]) for linear in self._fixed}  # x [M, K] by group
        self._outputs = {linear.name: _rows(arrays[linear.output]) for linear in self._fixed}  # y [M, N] by Linear

    def run(self, passing: dict[str, Value], timeline: Timeline | None) -> None:
        if self._binding is not None:
            for name in self._passed:
                self._binding.feed(name, passing[name])
            with span(timeline, "islands", f"island {self._number}", self._operator, self._what):
                passing |= self._binding.run()
            if not self._keeps_inputs:
                self._binding.release(self._passed)
        for attention in self._attentions:
            with span(timeline, "attention", f"attention {self._number}", Operator.ATTENTION, "GroupQueryAttention"):
                attention.run(passing)
        if self._fixed:
            self._linears.run(self._number, self._inputs, self._outputs)
        elif self._variable:
            self._run_variable(self._variable, passing)

    def _run_variable(self, linears: Sequence[OutsideLinear], passing: dict[str, Value]) -> None:
        inputs = {linear.group: self._array(linear.input, passing) for linear in linears}  # [..., K] by group
        outputs = {linear.name: self._output(linear, inputs[linear.group]) for linear in linears}  # [..., N] by Linear
        self._linears.run(
            self._number,
            {group: _rows(array) for group, array in inputs.items()},  # [M, K]
            {name: _rows(array) for name, array in outputs.items()},  # [M, N]
        )
        for linear in linears:
            if linear.output not in self._arrays:
                passing[linear.output] = value_of(outputs[linear.name], ElementType.FLOAT)

    def _array(self, name: str, passing: Mapping[str, Value]) -> npt.NDArray[Any]:
        return self._arrays[name] if name in self._arrays else array_of(passing[name])

    def _output(self, linear: OutsideLinear, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if linear.output in self._arrays:
            return self._arrays[linear.output]
        return np.empty((*x.shape[:-1], linear.out_features), np.float32)  # [..., N]


def _attention(
    attention: OutsideAttention,
    binder: AttentionBinder | None,
    bound: Mapping[str, Value],
    arrays: Mapping[str, npt.NDArray[Any]],
) -> StationAttention:
    if binder is None:
        raise ValueError(f"{attention.name} runs outside onnxruntime, and nothing was given that attends")
    return StationAttention(attention, binder, bound, arrays)


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.reshape(-1, array.shape[-1])  # [..., K] -> [M, K]
