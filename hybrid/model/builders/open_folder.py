"""A Hugging Face folder to a `Decoder`. Only JSON and headers are read: any size opens in milliseconds."""

from hybrid.errors import ModelFileError
from hybrid.model.builders.llama import build, cache_pairs
from hybrid.model.builders.weights import unused_tensors
from hybrid.model.decoder import Decoder
from hybrid.model.hf_config import parse_config
from hybrid.model.safetensors import read_index
from hybrid.model.source import CONFIG, ModelFolder, listed, show


def open_huggingface(folder: ModelFolder, context_tokens: int) -> Decoder:
    """The decoder in a folder with `config.json`; without safetensors its weights have no source.

    The context is cut to what the model was made for. Raises ModelError.
    """
    if folder.config is None:
        raise ModelFileError(f"{show(folder.folder)}: no {CONFIG}")
    config = parse_config(folder.config, show(folder.folder / CONFIG), folder.generation_config)
    tensors = read_index(folder.safetensors_files) if folder.safetensors_files else None
    notes = []
    if unused := unused_tensors(config, tensors or ()):
        notes.append(f"left out what is not part of the model: {listed(unused)}")
    graph = build(config, tensors, min(context_tokens, config.max_positions), folder.name)
    return Decoder(
        name=folder.name,
        folder=folder.folder,
        graph=graph,
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        context_limit=config.max_positions,
        eos_token_ids=config.eos_token_ids,
        bos_token_id=config.bos_token_id,
        cache=cache_pairs(config),
        shared_cache=True,
        notes=tuple(notes),
    )
