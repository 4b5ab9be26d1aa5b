"""Run language models bigger than your GPU.

from hybrid import load

with load("models/mistral-7b", cuda=6) as model:
    for piece in model.stream("Why is the sky blue?"):
        print(piece, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

from hybrid.errors import HybridError, OffloadError
from hybrid.version import __version__

if TYPE_CHECKING:
    from hybrid.text.text_model import TextModel, load

__all__ = ["HybridError", "OffloadError", "TextModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `TextModel` come with numpy and onnxruntime, so they are imported when first asked for."""
    if name in ("TextModel", "load"):
        from hybrid.text import text_model

        return getattr(text_model, name)
    raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
