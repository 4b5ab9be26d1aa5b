"""The demo model, and what plans and devices of its size need."""

import json
from contextlib import closing
from math import prod

import numpy as np
import pytest

from hybrid.families.registry import parse_config, tensor_shapes
from hybrid.formats.safetensors import read_index
from hybrid.loading.opened_model import OpenedModel, open_for_run
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from tests.device.emulated_cupy import EmulatedCupy
from tests.engines import engine_on_cpu, greedy, open_settings
from tests.faults.recovery.engines import GOLDEN
from tests.hf_models import write_model


@pytest.fixture(scope="session")
def demo() -> OpenedModel:
    return open_settings(DEMO_MODEL)


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """The first two layers of the demo model, which are loaded and run in a fraction of a second."""
    config = json.loads((DEMO_MODEL / "config.json").read_text()) | {"num_hidden_layers": 2}
    stored = read_index([DEMO_MODEL / "model.safetensors"])
    weights = {
        name: np.fromfile(tensor.source.path, np.float16, prod(tensor.shape), offset=tensor.source.offset)
        for name, tensor in stored.items()
    }
    names = tensor_shapes(parse_config(config, "config.json"))
    folder = tmp_path_factory.mktemp("two layers")
    write_model(folder, config, {name: weights[name].reshape(shape) for name, shape in names.items()}, "F16")
    return open_for_run(RunSettings(folder))


@pytest.fixture(scope="session")
def expected(two_layers: OpenedModel) -> list[int]:
    """The tokens of the two layers without a device."""
    with closing(engine_on_cpu(two_layers)) as engine:
        return greedy(engine, GOLDEN.prompt_ids, 4)[0]


@pytest.fixture
def fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that shrinks by less than a MiB, for a model of a few."""
    monkeypatch.setattr("offload.run.recovery.MIB", 16 << 10)
    monkeypatch.setattr("offload.run.recovery._UNKNOWN_BYTES", 64 << 10)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCupy:
    emulation = EmulatedCupy()
    emulation.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device.gemm_is_exact", lambda device, weight_format: True)
    return emulation
