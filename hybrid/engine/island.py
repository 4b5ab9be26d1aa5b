"""The only importer of onnxruntime: sessions, and the bindings that feed them without copying."""

import ctypes
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.engine.island_profiler import IslandProfiler
from hybrid.errors import UnsupportedModelError
from hybrid.formats.onnx_graph import common_folder, serialize
from hybrid.graph.canonical import CanonicalIsland, canonical
from hybrid.graph.graph import ElementType, Initializer, body_initializers
from hybrid.graph.program import Island, Program
from hybrid.machine.packages import check_packages
from offload.storage.weight_file import FileRange

check_packages()  # first: a half-overwritten onnxruntime fails in its import, and says nothing of why

# Before the import too: from 1.31 on, its packages for Linux write an identifier into the home folder and send what was
# run to their maker, unless the environment says otherwise. A choice of the user's own is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # noqa: E402

Value = Any  # an onnxruntime OrtValue on the CPU

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


_MOST_POOL_THREADS = 256  # of all sessions together


class LoadedIsland:
    """An island whose session may serve other layers too."""

    def __init__(self, island: Island, canonical_island: CanonicalIsland, session: ort.InferenceSession) -> None:
        self.island = island
        self._canonical = canonical_island
        self._session = session
        self._parameters = {name: constant_value(p) for name, p in canonical_island.parameters.items()}

    def bind(self) -> "IslandBinding":
        """A new set of bindings; each keeps its own inputs and outputs."""
        outputs = [info.name for info in self.island.outputs]
        binding = IslandBinding(self._session, self.island.name, self._canonical.names, outputs)
        for name, value in self._parameters.items():
            binding.feed_parameter(name, value)
        return binding

    def drop_mapped_pages(self) -> None:
        """Release the pages of mapped parameters; they come back, mostly from the page cache, when they are read."""
        for parameter in self._canonical.parameters.values():
            if isinstance(parameter.source, FileRange):
                parameter.source.file.drop_pages(parameter.source.offset, parameter.source.nbytes)


class IslandBinding:
    """The inputs and outputs of one island.

    What is fed or written in place stays bound for the following runs; other outputs are allocated every run.
    """

    def __init__(
        self, session: ort.InferenceSession, name: str, names: Mapping[str, str], outputs: Sequence[str]
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._name = name
        self._names = names
        self._outputs = outputs
        self._allocated = list(outputs)
        for output in outputs:  # get_outputs answers in the order of the first binding
            self._binding.bind_output(names[output])

    def feed(self, name: str, value: Value) -> None:
        """Read input `name` from `value`, in place."""
        self._binding.bind_ortvalue_input(self._names[name], value)

    def feed_parameter(self, canonical_name: str, value: Value) -> None:
        """Read a parameter, which has no other name, from `value`."""
        self._binding.bind_ortvalue_input(canonical_name, value)

    def write_to(self, name: str, value: Value) -> None:
        """Write output `name` into `value`, in place."""
        self._allocated.remove(name)
        self._binding.bind_ortvalue_output(self._names[name], value)

    def run(self) -> dict[str, Value]:
        """Run the island; gives the outputs that are not written in place."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise UnsupportedModelError(f"onnxruntime stopped in {self._name}: {_one_line(error)}") from None
        if not self._allocated:
            return {}
        values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        for name in self._allocated:  # or the binding would keep what it gave until the next run
            self._binding.bind_output(self._names[name])
        return {name: values[name] for name in self._allocated}

    def release(self, names: Iterable[str]) -> None:
        """Keep inputs alive no longer; they have to be fed again before the next run."""
        for name in names:
            self._binding.bind_ortvalue_input(self._names[name], _nothing())


@functools.cache
def _nothing() -> Value:
    return value_of(np.empty(0, np.float32), ElementType.FLOAT)


def load_islands(
    program: Program, threads: int, profiler: IslandProfiler | None = None, rounds: bool = False
) -> list[LoadedIsland | None]:
    """A loaded island for every level that has one. Weights are mapped; what onnxruntime prepacks it holds in RAM.

    Islands of a cut graph run on one thread: they alternate with kernels that use every core, and two pools that
    spin on the same cores slow each other down several times over. An island that multiplies weights itself gets
    all threads, and may spin only where nothing runs beside it. With a `profiler`, sessions profile themselves for it.
    With `rounds`, activations that meet weights out of a
    DequantizeLinear may be rounded to int8.
    """
    spin = not any(level.linears or level.attentions for level in program.levels)
    # Each that multiplies weights has a session and a pool of its own, however many layers there are.
    pools = sum(level.island.has_matmul for level in program.levels if level.island is not None)
    threads = min(threads, max(1, _MOST_POOL_THREADS // max(1, pools)))
    sessions: dict[tuple[bytes, Path], ort.InferenceSession] = {}
    loaded: list[LoadedIsland | None] = []
    for level in program.levels:
        if level.island is None:
            loaded.append(None)
            continue
        renamed = canonical(level.island)
        part = renamed.island
        folder = common_folder([*part.initializers, *body_initializers(part.nodes)])
        opsets = program.graph.opsets
        model = serialize("island", part.nodes, part.inputs, part.outputs, part.initializers, opsets, folder)
        if (model, folder) not in sessions:
            sessions[model, folder] = _session(part, model, folder, threads, spin, rounds, profiler)
        loaded.append(LoadedIsland(level.island, renamed, sessions[model, folder]))
    return loaded


def _session(
    island: Island, model: bytes, folder: Path, threads: int, spin: bool, rounds: bool, profiler: IslandProfiler | None
) -> ort.InferenceSession:
    options = _session_options(island, folder, threads if island.has_matmul else 1, spin, rounds)
    if profiler is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profiler.file_prefix
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise UnsupportedModelError(f"onnxruntime cannot load {island.name}: {_one_line(error)}") from None
    if profiler is not None:
        profiler.add(session)
    return session


def value_of(array: npt.NDArray[Any], element_type: ElementType) -> Value:
    """An OrtValue over the memory of a C-contiguous `array`, which it keeps alive; nothing is copied."""
    if element_type is ElementType.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(element_type))
    return ort.OrtValue.ortvalue_from_numpy(array)


def constant_value(initializer: Initializer) -> Value:
    """An OrtValue over a constant, mapped when it lies in a file."""
    return value_of(initializer.array(), initializer.element_type)


def array_of(value: Value) -> npt.NDArray[Any]:
    """A view of the memory of `value`, which must outlive it."""
    shape = tuple(value.shape())
    dtype = _DTYPES[value.data_type()]
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(value.data_ptr()))
    return memory.view(dtype).reshape(shape)


def _session_options(island: Island, folder: Path, threads: int, spin: bool, rounds: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if island.dequantises and not rounds:
        # Higher levels turn DequantizeLinear -> MatMul into a product with rounded activations.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
