"""Hugging Face `config.json` + tensors to a `Graph`: a short file of each family, and one line in the registry."""

from hybrid.families.open_folder import open_huggingface

__all__ = ["open_huggingface"]
