"""Hugging Face `config.json` + safetensors to a `Graph`, one file per architecture family."""

from hybrid.model.builders.llama import build
from hybrid.model.builders.open_folder import open_huggingface

__all__ = ["build", "open_huggingface"]
