"""Quantisation: what may be asked, and the notes of the plan."""

import pytest

from hybrid.errors import UsageError
from hybrid.loading.quantisation import activations_asked, host_format_of, quantisation_notes, without_effect
from offload.spec.linear import Activations, Layout, LinearSpec, WeightFormat


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
    assert quantisation_notes(linears[3:], WeightFormat.INT8) == []


def test_what_has_no_effect_is_said() -> None:
    floats, blocks = [spec("q_proj", WeightFormat.FP16)], [spec("k_proj", WeightFormat.INT4, "4-bit blocks")]
    assert without_effect(floats, WeightFormat.INT8, Activations.FLOAT) == []
    assert without_effect(blocks, None, Activations.FLOAT) == []
    assert without_effect(floats, None, None) == []
    (line,) = without_effect(blocks, WeightFormat.INT8, None)
    assert line.startswith("--host-dtype int8: no effect")
    (line,) = without_effect(floats, None, Activations.INT8)
    assert line.startswith("--activations int8: no effect")
