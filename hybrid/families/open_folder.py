"""A Hugging Face folder to a `Decoder`. Only JSON and headers are read: any size opens in milliseconds."""

from collections.abc import Mapping

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.families.blocks.attention import cache_pairs
from hybrid.families.registry import build, check_class, parse_config
from hybrid.families.tensors.safetensors_source import SafetensorsSource, with_usual_names
from hybrid.families.tensors.tensor_source import ConfigTensors, TensorSource
from hybrid.families.tensors.tied_head import resolve_tied_head
from hybrid.formats.safetensors import StoredTensor, misplaced, read_index
from hybrid.graph.decoder import Decoder
from hybrid.shown import listed, show
from hybrid.source.folder import CONFIG, WEIGHTS_INDEX, ModelFolder
from offload.spec.units import counted


def open_huggingface(folder: ModelFolder, context_tokens: int, allow_unused: bool = False) -> Decoder:
    """The decoder in a folder with `config.json`; without safetensors its weights have no source.

    The context is cut to what the model was made for. A class or tensors that are not the family's are told in the
    notes with `allow_unused`, and refused without. Raises ModelError.
    """
    if folder.config is None:
        raise ModelFileError(f"{show(folder.folder)}: no {CONFIG}")
    where = show(folder.folder / CONFIG)
    config = parse_config(folder.config, where, folder.generation_config)
    notes = [*check_class(folder.config, where, allow_unused)]
    source: TensorSource = ConfigTensors(config.dtype)
    if folder.safetensors_files:
        stored = read_index(folder.safetensors_files, folder.weight_map)
        notes += _misplaced(folder, stored)
        config, tensors = resolve_tied_head(config, with_usual_names(stored))
        source = SafetensorsSource(tensors)
    graph = build(config, source, min(context_tokens, config.max_positions), folder.name)
    notes += _unused(folder, config.model_type, source.unused(), allow_unused)
    return Decoder(
        name=folder.name,
        folder=folder.folder,
        graph=graph,
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        context_limit=config.max_positions,
        eos_token_ids=config.eos_token_ids,
        bos_token_id=config.bos_token_id,
        cache=cache_pairs(config.num_layers),
        shared_cache=True,
        notes=(*notes, *config.notes),
    )


def _misplaced(folder: ModelFolder, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """A note on the tensors that are not where the index says, if any; transformers reads them where they are, too."""
    names = misplaced(tensors, folder.safetensors_files, folder.weight_map)
    if not names:
        return []
    count = counted(len(names), "tensor is", "tensors are")
    return [f"{count} in another file than {WEIGHTS_INDEX} says: {listed(names)}; read from where they are"]


def _unused(folder: ModelFolder, model_type: str, unused: list[str], allow_unused: bool) -> list[str]:
    """A note on the tensors that are left over, if any and `allow_unused`; without it, UnsupportedModelError."""
    if not unused:
        return []
    count = counted(len(unused), "tensor is", "tensors are")
    what = f"{count} not part of a {model_type} with this config.json: {listed(unused)}"
    if not allow_unused:
        raise UnsupportedModelError(
            f"{show(folder.folder)}: {what}; what they are for would be missing; --allow-unused runs it without them"
        )
    return [f"{what}; left out"]
