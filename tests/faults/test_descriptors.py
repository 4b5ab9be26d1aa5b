"""Files, threads and sessions of a loaded model: as many whatever its depth and number of files."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hybrid.engine import island
from hybrid.engine.engine import Engine
from hybrid.loading.opened_model import OpenedModel
from hybrid.tune.zero_model import ZeroShape
from offload.weights.reads import READERS
from tests.block_models import open_zero_blocks
from tests.engines import PLACEMENTS, engine_on_cpu, engine_on_simulated, engine_with_files, open_settings
from tests.hf_models import random_weights, tiny_config, write_model


def halves(folder: Path, layers: int) -> OpenedModel:
    config = tiny_config(num_hidden_layers=layers, hidden_size=64, intermediate_size=64)
    return open_settings(write_model(folder, config, random_weights(config), dtype="F16"))


def a_file_for_each_tensor(folder: Path, layers: int) -> OpenedModel:
    config = tiny_config(num_hidden_layers=layers, hidden_size=64, intermediate_size=64)
    weights = random_weights(config)
    return open_settings(write_model(folder, config, weights, dtype="F16", shards=len(weights)))


def blocks(folder: Path, layers: int) -> OpenedModel:
    return open_zero_blocks(folder, ZeroShape(layers, hidden=64, intermediate=128, heads=4, positions=64))


MODELS = (halves, a_file_for_each_tensor, blocks)
ENGINES = {
    "host": engine_on_cpu,
    "files": lambda opened: engine_with_files(opened, every=1),
    "device": lambda opened: engine_on_simulated(opened, PLACEMENTS[-1]),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_descriptors_threads_and_sessions_do_not_grow_with_the_model(
    model: Callable[[Path, int], OpenedModel],
    engine: Callable[[OpenedModel], Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions: list[object] = []
    make = island.ort.InferenceSession
    monkeypatch.setattr(island.ort, "InferenceSession", lambda *a, **k: sessions.append(make(*a, **k)) or sessions[-1])

    def kept(layers: int) -> tuple[int, int, int]:
        opened = model(tmp_path / str(layers), layers)
        sessions.clear()
        with closing(engine(opened)) as running:
            running.prefill([1, 2, 3])
            running.decode(4)
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(sessions)

    few, _, _ = kept(3)  # the first run also starts the pool of threads
    shallow, deep = kept(4), kept(12)
    assert deep[1:] == shallow[1:]
    most_in_readers = READERS * 8 if engine is ENGINES["files"] else 0
    assert deep[0] - few <= most_in_readers
