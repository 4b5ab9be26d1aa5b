"""Times of operators in steps, from spans made by hand."""

from dataclasses import replace

import pytest

from offload.devices.base import Span
from offload.observe.op_times import BETWEEN, OpTime, op_times, settled
from offload.observe.timeline import Operator, Step


def decode(start_s: float, norm_s: float) -> Step:
    """A step of 10 s: norms of two layers, attention, a wait, and two GEMMs of a device beside them."""
    host = (
        Span("islands", "island 0", start_s, norm_s, Operator.ISLAND, "Norm"),
        Span("islands", "island 1", start_s + 1, 2.0, Operator.ATTENTION, "GQA"),
        Span("islands", "island 2", start_s + 3, norm_s, Operator.ISLAND, "Norm"),
        Span("linears", "wait for the device", start_s + 4, 4.0, Operator.WAIT, "q, k"),
    )
    gemms = tuple(Span("compute", "gemm 1x2x3", start_s + at, 1.5, Operator.GEMM, "1x2x3") for at in (4, 6))
    return Step("decode", start_s, 10.0, host, gemms)


def test_layers_and_steps_are_added_up_and_what_is_left_is_between() -> None:
    times = op_times([decode(0, norm_s=0.25), decode(20, norm_s=0.75)], modelled=True)
    assert times is not None
    assert (times.steps, times.mean_step_s, times.modelled) == (2, 10.0, True)
    assert times.host == (  # longest first
        OpTime("wait", "q, k", 1, 4.0, 0.4),
        OpTime(BETWEEN, "", 1, 3.0, 0.3),
        OpTime("attention", "GQA", 1, 2.0, 0.2),
        OpTime("island", "Norm", 2, 1.0, 0.1),
    )
    assert sum(row.share for row in times.host) == pytest.approx(1)
    assert times.device == (OpTime("gemm", "1x2x3", 2, 3.0, 0.3),)


def test_what_was_inside_comes_from_the_steps_that_were_looked_into_and_all_else_from_the_others() -> None:
    inside = tuple(Span("operators", "Add", at, 0.5, "Add") for at in (0.1, 3.1))
    slowed = replace(decode(0, norm_s=0.9), duration_s=16.0, inside=inside)
    times = op_times([slowed, decode(20, norm_s=0.5)], modelled=False)
    assert times is not None
    assert times.inside == (OpTime("Add", "", 2, 1.0, 0.1),)  # a share of a step that was not slowed down
    assert (times.steps, times.mean_step_s) == (1, 10.0)
    assert OpTime("island", "Norm", 2, 1.0, 0.1) in times.host
    alone = op_times([slowed], modelled=False)
    assert alone is not None
    assert (alone.steps, alone.mean_step_s) == (1, 16.0)


def test_no_steps_have_no_times() -> None:
    assert op_times([], modelled=False) is None


def test_the_first_step_of_a_kind_is_left_out_unless_it_is_alone() -> None:
    prefill, first, second, third = Step("prefill", 0, 9), decode(10, 0), decode(20, 0), decode(30, 0)
    assert settled([prefill, first, second, third], "decode") == (second, third)
    assert settled([prefill, first], "decode") == (first,)
    assert settled([prefill], "decode") == ()
