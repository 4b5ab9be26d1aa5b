"""The CUDA kernels for block-quantised weights, run on the CPU, against onnxruntime's MatMulNBits."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from offload.devices.cuda.own_kernels import CudaKernels
from offload.spec.linear import BlockFormat, WeightFormat
from tests.kernels.cuda.host_shim import HostLauncher
from tests.kernels.cuda.operands import BlockOperands, multiply, multiply_int8

TOLERANCE = 5e-7  # of the sum of magnitudes; the order of fp32 sums is all that may differ
FP32_LEVEL, INT8_LEVEL = 1, 4  # MatMulNBits' accuracy_level


def by_onnxruntime(operands: BlockOperands, accuracy_level: int) -> Any:
    weight, form = operands.weight, operands.weight.format
    parts = {
        "B": operands.codes.reshape(weight.columns, operands.blocks, -1),
        "scales": operands.scales.reshape(-1),
        "zeros": operands.zeros.reshape(-1) if operands.zeros is not None else None,
    }
    stored = [numpy_helper.from_array(np.array(part), name) for name, part in parts.items() if part is not None]
    node = helper.make_node(
        "MatMulNBits",
        ["x", *(tensor.name for tensor in stored)],
        ["y"],
        domain="com.microsoft",
        K=weight.inner,
        N=weight.columns,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=accuracy_level,
    )
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, operands.x.shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array(operands.x)})[0]


@pytest.mark.parametrize("has_zeros", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 32), (8, 128)])
def test_as_matmulnbits(bits: int, block: int, has_zeros: bool) -> None:
    """With fp32 rows as accuracy_level 1, with int8 rows as accuracy_level 4, whose rounding is far coarser."""
    kernels = CudaKernels(HostLauncher(), processors=1)
    operands = BlockOperands.random(BlockFormat(bits, block, WeightFormat.FP32), has_zeros, 2, 19, 512)
    magnitude = np.abs(operands.x) @ np.abs(operands.dequantised()).T
    in_fp32, in_int8 = multiply(kernels, operands), multiply_int8(kernels, operands)
    assert np.all(np.abs(in_fp32 - by_onnxruntime(operands, FP32_LEVEL)) <= TOLERANCE * magnitude)
    assert np.all(np.abs(in_int8 - by_onnxruntime(operands, INT8_LEVEL)) <= TOLERANCE * magnitude)
    assert np.abs((in_fp32 - in_int8) / magnitude).max() > 100 * TOLERANCE
