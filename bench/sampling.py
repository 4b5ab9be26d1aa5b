"""Times the choice of a token: `python -m bench.sampling`; milliseconds a token, one JSON line at the end."""

import json
import statistics
import time

import numpy as np
import numpy.typing as npt

from hybrid.text.sampling import Sampler, SamplingSettings

VOCAB = 151_936  # Qwen 2.5
PROMPT_TOKENS, TOKENS = 4096, 60

SETTINGS = {
    "greedy": SamplingSettings(),
    "temperature": SamplingSettings(0.8, seed=0),
    "top-p 0.95": SamplingSettings(0.8, top_p=0.95, seed=0),
    "top-p 0.5": SamplingSettings(0.8, top_p=0.5, seed=0),
    "top-k 40": SamplingSettings(0.8, top_k=40, seed=0),
    "top-k 40, top-p 0.95": SamplingSettings(0.8, 40, 0.95, 0),
    "min-p 0.05": SamplingSettings(0.8, seed=0, min_p=0.05),
    "top-p 0.95, min-p 0.05": SamplingSettings(0.8, top_p=0.95, seed=0, min_p=0.05),
    "top-k 40, typical-p 0.9": SamplingSettings(0.8, 40, seed=0, typical_p=0.9),
    "typical-p 0.9": SamplingSettings(0.8, seed=0, typical_p=0.9),
    "greedy, repetition": SamplingSettings(repetition_penalty=1.1),
    "all three penalties, top-p 0.95": SamplingSettings(
        0.8, top_p=0.95, seed=0, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5
    ),
}


def logits_of(shape: str) -> npt.NDArray[np.float32]:
    """Logits of a step: `flat` as random weights give them, `peaked` as a trained model does."""
    noise = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    return noise if shape == "flat" else noise * np.float32(3)


def median_ms(settings: SamplingSettings, logits: npt.NDArray[np.float32]) -> float:
    """Milliseconds of a token, the median of some."""
    prompt = np.random.default_rng(1).integers(0, VOCAB, PROMPT_TOKENS).tolist()
    sampler = Sampler(settings, prompt)
    times = []
    for _ in range(TOKENS):
        started = time.perf_counter()
        sampler(logits)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    """Measure every combination on flat and on peaked logits."""
    shapes = {shape: logits_of(shape) for shape in ("flat", "peaked")}
    print(f"{'ms a token, vocabulary ' + str(VOCAB):36}" + "".join(f"{shape:>9}" for shape in shapes))
    results = {}
    for name, settings in SETTINGS.items():
        results[name] = {shape: round(median_ms(settings, logits), 3) for shape, logits in shapes.items()}
        print(f"{name:36}" + "".join(f"{value:9.3f}" for value in results[name].values()))
    print(json.dumps({"vocab": VOCAB, "ms": results}))


if __name__ == "__main__":
    main()
