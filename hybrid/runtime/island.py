"""The only importer of onnxruntime: sessions, and the bindings that feed them without copying."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.errors import UnsupportedModelError
from hybrid.graph.graph import ElementType, Initializer
from hybrid.graph.program import Island
from hybrid.model.onnx_graph import common_folder, serialize
from hybrid.runtime.packages import check_packages

check_packages()  # first: a half-overwritten onnxruntime fails in its import, and says nothing of why

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


class IslandSession:
    """One island, loaded. Weights are mapped from their files; what onnxruntime prepacks it holds in RAM.

    Islands of a cut graph run on one thread: they alternate with kernels that use every core, and two pools that
    spin on the same cores slow each other down several times over. An island that multiplies weights itself gets
    all threads.
    """

    def __init__(self, island: Island, opsets: Mapping[str, int], threads: int, spin: bool) -> None:
        folder = common_folder(island.initializers)
        options = _session_options(island, folder, threads if island.has_matmul else 1, spin)
        model = serialize(island.name, island.nodes, island.inputs, island.outputs, island.initializers, opsets, folder)
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise UnsupportedModelError(f"onnxruntime cannot load {island.name}: {_one_line(error)}") from None
        self.island = island

    def bind(self) -> "IslandBinding":
        """A new set of bindings; each keeps its own inputs and outputs."""
        return IslandBinding(self._session, self.island)


class IslandBinding:
    """The inputs and outputs of one island.

    What is fed or written in place stays bound for the following runs; other outputs are allocated every run.
    """

    def __init__(self, session: ort.InferenceSession, island: Island) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._name = island.name
        self._outputs = [info.name for info in island.outputs]
        self._allocated = list(self._outputs)
        for name in self._outputs:  # get_outputs answers in the order of the first binding
            self._binding.bind_output(name)

    def feed(self, name: str, value: Value) -> None:
        """Read input `name` from `value`, in place."""
        self._binding.bind_ortvalue_input(name, value)

    def write_to(self, name: str, value: Value) -> None:
        """Write output `name` into `value`, in place."""
        self._allocated.remove(name)
        self._binding.bind_ortvalue_output(name, value)

    def run(self) -> dict[str, Value]:
        """Run the island; gives the outputs that are not written in place."""
        for name in self._allocated:
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise UnsupportedModelError(f"onnxruntime stopped in {self._name}: {_one_line(error)}") from None
        if not self._allocated:
            return {}
        values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        return {name: values[name] for name in self._allocated}


def value_of(array: npt.NDArray[Any], element_type: ElementType) -> Value:
    """An OrtValue over the memory of a C-contiguous `array`, which it keeps alive; nothing is copied."""
    if element_type is ElementType.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(element_type))
    return ort.OrtValue.ortvalue_from_numpy(array)


def constant_value(initializer: Initializer) -> Value:
    """An OrtValue over a constant, mapped when it lies in a file."""
    return value_of(np.asarray(initializer.array()), initializer.element_type)


def array_of(value: Value) -> npt.NDArray[Any]:
    """A view of the memory of `value`, which must outlive it."""
    shape = tuple(value.shape())
    dtype = _DTYPES[value.data_type()]
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(value.data_ptr()))
    return memory.view(dtype).reshape(shape)


def _session_options(island: Island, folder: Path, threads: int, spin: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if island.dequantises:
        # Higher levels turn DequantizeLinear -> MatMul into a product with rounded activations.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
