"""Find out if onnxruntime multiplies int8 exactly here: without VNNI it saturates sums of two products."""

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array


@cache
def is_exact() -> bool:
    """Multiply the largest numbers there are."""
    x = np.full((1, 64), 255, np.uint8)
    w = np.full((64, 16), 127, np.int8)
    given = make_tensor_value_info("x", TensorProto.UINT8, x.shape)
    made = make_tensor_value_info("y", TensorProto.INT32, (1, 16))
    graph = make_graph(
        [make_node("MatMulInteger", ["x", "w"], ["y"])], "product", [given], [made], [from_array(w, "w")]
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool((session.run(None, {"x": x})[0] == 255 * 127 * 64).all())


def skip_unless_exact() -> None:
    """Skip a test of logits that were recorded where it is."""
    if not is_exact():
        pytest.skip("onnxruntime saturates int8 products on this processor")
