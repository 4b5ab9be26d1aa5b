"""Hugging Face `config.json` + safetensors to a `Graph`, one file per architecture family."""

from hybrid.families.llama import build
from hybrid.families.open_folder import open_huggingface

__all__ = ["build", "open_huggingface"]
