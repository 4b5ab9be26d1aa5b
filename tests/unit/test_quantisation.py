"""What is asked of quantisation, and what the plan says of it."""

import pytest

from hybrid.errors import UsageError
from hybrid.runtime.quantisation import activations_asked, host_format_of, quantisation_notes
from offload.specs import Activations, Layout, LinearSpec, WeightFormat


def spec(name: str, weight_format: WeightFormat, host_only: str = "") -> LinearSpec:
    return LinearSpec(name, 64, 8, weight_format, Layout.NK, 1024, name, "", name, host_only)


def test_what_can_be_asked_for() -> None:
    assert [host_format_of(text) for text in (None, "int8", "int4")] == [None, WeightFormat.INT8, WeightFormat.INT4]
    assert [activations_asked(text) for text in (None, "int8", "float")] == [None, Activations.INT8, Activations.FLOAT]
    for text in ("", "fp16", "INT8"):
        with pytest.raises(UsageError, match=r"--host-dtype .*: must be int8 or int4"):
            host_format_of(text)
        with pytest.raises(UsageError, match=r"--activations .*: must be int8 or float"):
            activations_asked(text)


def test_the_plan_says_what_is_quantised() -> None:
    linears = [
        spec("q_proj", WeightFormat.FP16),
        spec("gemm", WeightFormat.FP32, "a Gemm with alpha"),
        spec("lm_head", WeightFormat.FP16),
        spec("blocks", WeightFormat.INT4, "4-bit blocks"),
    ]
    assert quantisation_notes(linears, None) == []
    (note,) = quantisation_notes(linears, WeightFormat.INT4)
    assert "streamed and host columns of 2 Linears, lm_head among them, are quantised to int4 on load" in note
    (note,) = quantisation_notes(linears[3:], WeightFormat.INT8)
    assert "no Linear of this model has float weights" in note
