"""The only importer of onnx: an .onnx file to a `Graph`, and parts of a Graph back to ONNX bytes."""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.formats.onnx_validation import validate
from hybrid.formats.onnx_weights import strip_weights
from hybrid.graph.element_types import propagate_types
from hybrid.graph.graph import Dim, ElementType, Graph, Initializer, Node, Shape, TensorInfo
from hybrid.shown import show
from hybrid.source.paths import resolve_in_folder
from offload.spec.units import counted
from offload.storage.weight_file import FileRange, WeightFile

IR_VERSION = 10  # onnxruntime refuses the one that onnx writes by default
_SMALL_BYTES = 1024


def read_graph(path: Path) -> Graph:
    """Read the graph of an .onnx file; weights, inline or external, stay in their files.

    Raises ModelFileError for a file that is broken or points outside its folder.
    """
    model, inline = _parse(path)
    validate(model, path)
    graph = _graph(model.graph, inline, path)
    return replace(graph, name=path.stem, opsets={opset.domain: opset.version for opset in model.opset_import})


def external_files(path: Path) -> set[str]:
    """The names of the files that an .onnx file keeps weights in, as it gives them: unchecked but for being text."""
    model, _ = _parse(path)
    tensors = (tensor for tensor in _tensors(model.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return {name for name in names if isinstance(name, str)}  # what is not UTF-8 comes as bytes


def _parse(path: Path) -> tuple[onnx.ModelProto, dict[str, FileRange]]:
    """The message without its large inline tensors, and where those lie by name."""
    message, inline = strip_weights(path.resolve())
    model = onnx.ModelProto()
    try:
        model.ParseFromString(message)
    except Exception as error:  # protobuf's DecodeError is not a public name
        raise ModelFileError(f"{path}: not an ONNX file: {error}") from None
    return model, inline


def with_types_and_shapes(graph: Graph, input_shapes: Mapping[str, Shape | None]) -> Graph:
    """Fill in what can be known of inner tensors when the inputs have these shapes; unknown shapes are left out.

    Raises ValueError for shapes that do not fit each other.
    """
    inputs = tuple(replace(info, shape=input_shapes.get(info.name, info.shape)) for info in graph.inputs)
    graph = replace(graph, inputs=inputs, types=propagate_types(replace(graph, inputs=inputs)))
    outputs = tuple(replace(info, shape=None) for info in graph.outputs)
    model = _model(graph.name, graph.nodes, inputs, outputs, graph.initializers.values(), graph.opsets, None)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(str(error)) from None
    known = (*inferred.graph.value_info, *inferred.graph.output)
    shapes = {value.name: _shape(value) for value in known if value.type.tensor_type.HasField("shape")}
    shapes |= {info.name: info.shape for info in inputs if info.shape is not None}
    return replace(graph, shapes=shapes)


def serialize(
    name: str,
    nodes: Sequence[Node],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    initializers: Iterable[Initializer],
    opsets: Mapping[str, int],
    folder: Path,
) -> bytes:
    """A model of these nodes as ONNX bytes; weights in files are named relative to `folder`, never copied."""
    return bytes(_model(name, nodes, inputs, outputs, initializers, opsets, folder).SerializeToString())


def common_folder(initializers: Iterable[Initializer]) -> Path:
    """The deepest folder that holds the files of all these weights."""
    folders = {str(i.source.path.parent) for i in initializers if isinstance(i.source, FileRange)}
    return Path(os.path.commonpath(sorted(folders))) if folders else Path.cwd()


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """The weights and constants of a graph and of the bodies in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _model(
    name: str,
    nodes: Sequence[Node],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    initializers: Iterable[Initializer],
    opsets: Mapping[str, int],
    folder: Path | None,
) -> onnx.ModelProto:
    graph = _graph_proto(name, nodes, inputs, outputs, initializers, folder)
    opset_ids = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.ModelProto(ir_version=IR_VERSION, graph=graph, opset_import=opset_ids)


def _graph_proto(
    name: str,
    nodes: Sequence[Node],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    initializers: Iterable[Initializer],
    folder: Path | None,
) -> onnx.GraphProto:
    graph = onnx.GraphProto(name=name)
    graph.node.extend(_node_proto(node, folder) for node in nodes)
    graph.input.extend(_value_info(info) for info in inputs)
    graph.output.extend(_value_info(info) for info in outputs)
    graph.initializer.extend(_tensor_proto(initializer, folder) for initializer in initializers)
    return graph


def _graph(proto: onnx.GraphProto, inline: Mapping[str, FileRange], path: Path) -> Graph:
    """A graph, or the body of a control-flow node, whose weights are never in `inline`."""
    initializers = {tensor.name: _initializer(tensor, inline, path) for tensor in proto.initializer}
    nodes = []
    for node in proto.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constant = _constant(node, path)
            initializers[constant.name] = constant
        else:
            nodes.append(_node(node, path))
    inputs = tuple(_tensor_info(v) for v in proto.input if v.name not in initializers)
    outputs = tuple(_tensor_info(v) for v in proto.output)
    return Graph(proto.name, tuple(nodes), inputs, outputs, initializers, {})


def _initializer(tensor: onnx.TensorProto, inline: Mapping[str, FileRange], path: Path) -> Initializer:
    where = f"{path}: tensor {show(tensor.name)}"
    empty = Initializer(tensor.name, ElementType(tensor.data_type), tuple(tensor.dims), None)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        source: FileRange | npt.NDArray[Any] = _external_range(tensor, empty.nbytes, path, where)
    elif tensor.name in inline:
        source = inline[tensor.name]
    else:
        source = _inline_array(tensor, where)
    if source.nbytes != empty.nbytes:
        raise ModelFileError(
            f"{where}: {counted(source.nbytes, 'byte')} stored, its shape and type take {empty.nbytes:,}"
        )
    return replace(empty, source=source)


def _external_range(tensor: onnx.TensorProto, nbytes: int, path: Path, where: str) -> FileRange:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", nbytes))
    except ValueError:
        raise ModelFileError(f"{where}: offset or length of its external data is no number") from None
    try:
        file = WeightFile.at(resolve_in_folder(path.parent, entries.get("location", ""), where))
    except (OSError, RuntimeError) as error:  # a name that is too long, no permission, links in a circle
        raise ModelFileError(f"{where}: its external data cannot be opened ({show(str(error))})") from None
    size = file.identity.nbytes
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFileError(f"{where}: bytes {offset} to {offset + length} lie outside {file.path}, which has {size}")
    return FileRange(file, offset, length)


def _inline_array(tensor: onnx.TensorProto, where: str) -> npt.NDArray[Any]:
    element_type = ElementType(tensor.data_type)
    if element_type is ElementType.STRING:
        raise UnsupportedModelError(f"{where}: string tensors are not supported")
    try:
        if tensor.HasField("raw_data"):
            array = np.frombuffer(tensor.raw_data, element_type.storage_dtype)
        else:
            array = onnx.numpy_helper.to_array(tensor)
            if element_type.bits < 8:
                raise UnsupportedModelError(f"{where}: 4-bit elements are read from raw data only")
            array = array.view(element_type.storage_dtype)
        return array if element_type.bits < 8 else array.reshape(tuple(tensor.dims))
    except (ValueError, TypeError) as error:
        shape, why = (textwrap.shorten(str(text), 150) for text in (list(tensor.dims), error))
        raise ModelFileError(f"{where}: its data do not fit its shape {shape}: {why}") from None


def _constant(proto: onnx.NodeProto, path: Path) -> Initializer:
    name = proto.output[0]
    where = f"{path}: constant {name!r}"
    attribute = proto.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
        value.name = name
        return _initializer(value, {}, path)
    dtypes = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in dtypes:
        raise UnsupportedModelError(f"{where}: attribute {attribute.name!r} is not supported")
    plain = np.asarray(value, dtypes[attribute.name])
    element_type = ElementType.FLOAT if plain.dtype == np.float32 else ElementType.INT64
    return Initializer(name, element_type, plain.shape, plain)


def _node(proto: onnx.NodeProto, path: Path) -> Node:
    attributes: dict[str, Any] = {}
    plain = (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING)
    for attribute in proto.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            attributes[attribute.name] = _graph(attribute.g, {}, path)
            continue
        # Only plain values are unpacked; an empty list would lose its type.
        lists = attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS)
        value = onnx.helper.get_attribute_value(attribute)
        unpack = attribute.type in plain or (lists and len(value) > 0)
        attributes[attribute.name] = value if unpack else attribute
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, domain, proto.name)


def _node_proto(node: Node, folder: Path | None) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    for name, value in node.attributes.items():
        if isinstance(value, Graph):
            parts = value.nodes, value.inputs, value.outputs, value.initializers.values()
            value = onnx.helper.make_attribute(name, _graph_proto(value.name, *parts, folder))
        is_proto = isinstance(value, onnx.AttributeProto)
        proto.attribute.append(value if is_proto else onnx.helper.make_attribute(name, value))
    return proto


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    return TensorInfo(value.name, ElementType(tensor.elem_type), _shape(value) if tensor.HasField("shape") else None)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(_dim(dim) for dim in dims)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None  # -1 is what some exporters write for unknown
    return str(dim.dim_param) or None


def _value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    if info.element_type is ElementType.UNDEFINED:
        return onnx.ValueInfoProto(name=info.name)
    shape = None if info.shape is None else list(info.shape)
    return onnx.helper.make_tensor_value_info(info.name, int(info.element_type), shape)


def _tensor_proto(initializer: Initializer, folder: Path | None) -> onnx.TensorProto:
    """A weight whose file is named relative to `folder`; without one it has no data, unless it is small.

    Shape inference, which needs no folder, reads shapes and axes, never weights.
    """
    proto = onnx.TensorProto(name=initializer.name, data_type=int(initializer.element_type), dims=initializer.shape)
    source = initializer.source
    if folder is None:
        source = initializer.array() if source is not None and initializer.nbytes <= _SMALL_BYTES else None
    if isinstance(source, np.ndarray):
        proto.raw_data = source.tobytes()
    elif source is not None and folder is not None:
        proto.data_location = onnx.TensorProto.EXTERNAL
        entries = {
            "location": source.path.relative_to(folder).as_posix(),
            "offset": str(source.offset),
            "length": str(source.nbytes),
        }
        proto.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
    return proto
