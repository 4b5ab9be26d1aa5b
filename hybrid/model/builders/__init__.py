"""Hugging Face `config.json` + safetensors to a `Graph`, one file per architecture family."""
