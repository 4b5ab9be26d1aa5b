"""One model at one budget, in a process of its own: `python -m bench.gpu.model_run SETTINGS`, one line of JSON.

SETTINGS is JSON: the fields of RunSettings that are to be set, and `prompt_tokens` and `decode_tokens`.
"""

import json
import statistics
import sys
import time
from typing import Any

from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import RunSettings
from hybrid.show.gpu_text import gpu_json


def measure(settings: RunSettings, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Load, prefill an empty cache, decode from an empty cache; beside what the plan expects of both."""
    began_s = time.perf_counter()
    with open_engine(settings) as engine:
        load_s = time.perf_counter() - began_s
        device_used_bytes = [_device_used_bytes(engine)]
        prefill_s = [_prefill_s(engine, prompt_tokens) for _ in range(2)]
        engine.trim(1)
        steps_s = [_decode_s(engine, 100 + number) for number in range(decode_tokens)]
        device_used_bytes.append(_device_used_bytes(engine))
        plan, memory = engine.plan, engine.memory()
        columns = [sum(len(getattr(p, place)) * p.linear.column_bytes for p in plan.placements) for place in _PLACES]
        return {
            "load_s": load_s,
            "decode_step_s": statistics.median(steps_s[1:]),
            "predicted_decode_step_s": plan.at_depths[0].decode_step_s,
            "bound_by": plan.at_depths[0].bound_by,
            "prefill_tokens": prompt_tokens,
            "prefill_s": prefill_s[-1],
            "predicted_prefill_s": plan.prefill.step_s * prompt_tokens / plan.prefill.tokens,
            "bytes": dict(zip(_PLACES, map(round, columns), strict=True)),
            "budget_bytes": memory["vram_budget_bytes"],
            "plan_vram_bytes": memory["vram_planned_bytes"],
            "vram_peak_bytes": memory["vram_peak_bytes"],
            "vram_peak_source": memory["vram_peak_source"],
            "gpu": gpu_json(engine.monitor),
            "plan_vram": dict(plan.vram_bytes),
            "estimated": bool(plan.machine.get("estimated")),
            "device_used_bytes": max((used for used in device_used_bytes if used is not None), default=None),
            "ram_peak_bytes": memory["ram_peak_bytes"],
            "warnings": list(plan.warnings),  # also what recovery from a failed allocation did
        }


_PLACES = ("resident", "streamed", "host")


def _device_used_bytes(engine: Engine) -> int | None:
    """Memory of the device in use by all processes together, as CUDA says; None without a device."""
    device = engine._device
    if device is None:
        return None
    memory = device.memory()
    return memory.total_bytes - memory.free_bytes


def _prefill_s(engine: Engine, tokens: int) -> float:
    engine.trim(0)
    began_s = time.perf_counter()
    engine.prefill([(7 * number) % 400 + 3 for number in range(tokens)])
    return time.perf_counter() - began_s


def _decode_s(engine: Engine, token_id: int) -> float:
    began_s = time.perf_counter()
    engine.decode(token_id)
    return time.perf_counter() - began_s


def main() -> None:
    """Measure as the argument says."""
    settings = json.loads(sys.argv[1])
    tokens = settings.pop("prompt_tokens"), settings.pop("decode_tokens")
    print(json.dumps(measure(RunSettings(**settings), *tokens)))


if __name__ == "__main__":
    main()
