"""Host columns that CUDA registers for prefill, where a call of it fails; the text is the same."""

from contextlib import closing

import pytest

from hybrid.loading.opened_model import OpenedModel
from offload.devices.cuda.device import CudaDevice
from offload.plan.placing import place
from offload.plan.plan import Plan
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.spec.units import MIB
from tests.device.emulated_cupy import EmulatedCupy
from tests.engines import engine_on
from tests.faults.recovery.engines import GOLDEN, TOKENS, columns, tokens_of


def prefill_streams_all(request: PlanRequest) -> Plan:
    if not request.budget_bytes:
        return place(request, lambda _: Shares())
    return place(request, lambda _: Shares(0.3, 0.1, prefill=0.7), prefill_tokens=2)


@pytest.mark.parametrize("call", ["", "hostRegister", "memcpyAsync"])
def test_cuda_is_lost_with_host_columns_registered(emulated: EmulatedCupy, demo: OpenedModel, call: str) -> None:
    """While they are registered, in the middle of prefill, or not at all."""
    calls: list[str] = []

    def fault(name: str) -> int:
        calls.extend([name] * (name == call))
        return 719 if name == call and len(calls) == (1 if name == "hostRegister" else 300) else 0

    emulated.fault = fault
    with closing(engine_on(CudaDevice(), demo, prefill_streams_all, 8 * MIB, threads=1)) as engine:
        assert bool(emulated.registered) == (call != "hostRegister")  # there it is lost at once
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(engine.plan.warnings) == (1 if call else 0)
        assert columns(engine.plan)[2] > 0
        assert (engine.plan.total_vram_bytes == 0) == bool(call)
    assert call or not emulated.registered


def test_cuda_refuses_to_register_host_columns(emulated: EmulatedCupy, demo: OpenedModel) -> None:
    """Prefill then streams what decode does, and a plan that is made anew says so once."""
    emulated.register_error = 2
    calls: list[str] = []

    def fault(name: str) -> int:
        calls.extend([name] * (name == "malloc"))
        return 2 if name == "malloc" and len(calls) == 2 else 0

    emulated.fault = fault
    with closing(engine_on(CudaDevice(), demo, prefill_streams_all, 8 * MIB, threads=1)) as engine:
        refused, registered = engine.plan.warnings
        assert "VRAM" in refused
        assert "cannot be page-locked: out of pinned RAM" in registered
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
