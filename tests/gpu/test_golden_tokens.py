"""The golden tokens of the demo model with its Linears on a GPU, in every kind of placement."""

import pytest

from hybrid.loading.open_engine import load
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from offload.devices.cuda.device import CudaDevice
from offload.errors import DeviceUnavailableError
from offload.plan.placing import place
from offload.plan.shares import Shares
from tests.engines import greedy, open_settings, read_golden
from tests.parity.test_golden_tokens import DEMO_GOLDEN

pytestmark = pytest.mark.gpu

PLACEMENTS = {
    "all resident": Shares(resident=1.0),
    "all streamed": Shares(streamed=1.0),
    "resident and host": Shares(resident=0.5),
    "three ways": Shares(resident=0.4, streamed=0.3),
    "three ways, streamed in prefill": Shares(resident=0.4, streamed=0.2, prefill=0.5),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_gpu_gives_the_golden_tokens(name: str) -> None:
    try:
        device = CudaDevice()
    except DeviceUnavailableError as error:
        pytest.skip(str(error))
    golden = read_golden(DEMO_GOLDEN)
    opened = open_settings(DEMO_MODEL)
    target = choose_target(RunSettings(cuda="1", device="simulated"), look_in_profile)
    shares = PLACEMENTS[name]
    plan = place(plan_request(opened, target, {}), lambda linear: shares, prefill_tokens=2 if shares.prefill else 0)
    with load(opened, plan, device, threads=2) as engine:
        ids, _ = greedy(engine, golden.prompt_ids, 20)
    assert ids == golden.greedy_ids[:20]
