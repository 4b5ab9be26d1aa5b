"""What `import hybrid` offers, and what it costs."""

import subprocess
import sys

import hybrid


def test_the_public_names() -> None:
    assert sorted(hybrid.__all__) == ["HybridError", "OffloadError", "TextModel", "__version__", "load"]
    for name in hybrid.__all__:
        assert getattr(hybrid, name) is not None


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "onnx",
        "onnxruntime",
        "numba",
        "scipy",
        "cupy",
        "pynvml",
        "rich",
        "sentencepiece",
        "huggingface_hub",
    )
    code = f"import sys, hybrid, hybrid.cli; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_load_completes_a_prompt_with_the_demo_model() -> None:
    with hybrid.load(cuda=0) as model:
        text = model.generate("Once upon a time", max_tokens=20)
        assert text == "".join(model.stream("Once upon a time", max_tokens=20))
        assert text.startswith(",")
        assert model.last_stats is not None
        assert model.last_stats.generated_tokens == 20
        sampled = [model.generate("Once upon a time", max_tokens=20, temperature=1.0, seed=7) for _ in range(2)]
        assert sampled[0] == sampled[1]
