"""Tells a Hugging Face folder, an ONNX file and neither apart, and which of its files to open."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.shown import listed, show
from hybrid.source.paths import resolve_in_folder
from offload.small_files import UnreadableFileError, read_small_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
GENAI_CONFIG = "genai_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
ONNX_NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx")

_MAX_JSON_BYTES = 16_000_000
_MAX_INDEX_BYTES = 64_000_000  # a name and a file for every tensor of a large mixture of experts
_OTHER_WEIGHTS = (".bin", ".gguf", ".ggml", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".npz")
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model, and the files of it that matter.

    `safetensors_files` is empty when there is only a config: enough to plan, not to run. The files are named
    as they lie in the folder; `real_file` follows their links. `weight_map` is that of the index of the shards, if
    they have one: tensors to file names.
    """

    folder: Path
    kind: Literal["huggingface", "onnx"]
    onnx: Path | None
    safetensors_files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    tokenizer_model: Path | None
    generation_config: Mapping[str, Any] | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)
    genai_config: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The folder's name, or `org/name` for a snapshot in the Hugging Face cache."""
        repository = _cache_repository(self.folder)
        if repository is not None:
            return repository.name.removeprefix("models--").replace("--", "/")
        return self.folder.name


def find_model(path: str | Path) -> ModelFolder:
    """Look at a folder, an .onnx file or a config.json and say which model it is. Reads JSON files, never weights.

    A folder with `config.json` and safetensors is "huggingface"; else one with an ONNX file, there or in
    `onnx/`, is "onnx"; else one with `config.json` alone is "huggingface" without weights, and so is that file
    when it is named itself. Raises ModelFileError (missing, empty, unreadable, ambiguous) or UnsupportedModelError
    (other weight formats).
    """
    given = Path(path).expanduser()
    try:
        if given.is_dir():
            return _look_into(given.resolve())
        if given.is_file():
            return _config_alone(given) if given.name == CONFIG else _onnx_model(given)
        there = os.path.lexists(given)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{show(given)}: cannot be opened ({_reason(error)})") from None
    if there:
        raise ModelFileError(f"{show(given)}: neither a folder nor a file (a broken link?)")
    raise ModelFileError(f"{show(given)}: no such folder; a model on the Hugging Face hub is named org/name")


def hub_name(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of "org/name" or "org/name@revision"; None for what cannot be on the hub."""
    match = _HUB_NAME.fullmatch(text)
    return None if match is None or ".." in (match[2] or "") else (match[1], match[2])


def is_there(path: Path) -> bool:
    """Tell whether something is at a path, be it a broken link. Raises ModelFileError for what is no path."""
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{show(path)}: cannot be opened ({_reason(error)})") from None


def real_file(path: Path) -> Path:
    """The regular file that `path` is, links resolved and checked (see `paths`), or ModelFileError."""
    try:
        return resolve_in_folder(path.parent, path.name, show(Path(path.name)))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise ModelFileError(f"{show(path)}: cannot be opened ({_reason(error)})") from None


def read_json(path: Path, most_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelFileError when it cannot be read, is too long or is not an object."""
    try:
        value = read_small_json(real_file(path), most_bytes)
    except UnreadableFileError as error:
        raise ModelFileError(f"{show(path)}: {show(Path(str(error)))}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{show(path)}: holds {show(value)}, must be a JSON object")
    return value


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(ascii(text)[1:-1].split())[:120]


def _cache_repository(folder: Path) -> Path | None:
    """`models--org--name` when the folder lies in its snapshots."""
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return None


def _look_into(folder: Path) -> ModelFolder:
    names = sorted(os.listdir(folder))
    config = read_json(folder / CONFIG) if CONFIG in names else None
    weight_map = {} if WEIGHTS in names or WEIGHTS_INDEX not in names else read_weight_map(folder / WEIGHTS_INDEX)
    weights = _weight_files(folder, names, weight_map)
    onnx_file = None if config is not None and weights else _onnx_file(folder, names)
    if onnx_file is None:
        _check_huggingface(folder, names, config, weights)
    return ModelFolder(
        folder=folder,
        kind="huggingface" if onnx_file is None else "onnx",
        onnx=onnx_file,
        safetensors_files=weights if onnx_file is None else (),
        config=config,
        tokenizer_model=_optional(folder, "tokenizer.model"),
        generation_config=read_json(folder / GENERATION_CONFIG) if GENERATION_CONFIG in names else None,
        weight_map=weight_map,
        genai_config=_genai_config(onnx_file),
    )


def _check_huggingface(
    folder: Path, names: list[str], config: Mapping[str, Any] | None, weights: tuple[Path, ...]
) -> None:
    """Say what is wrong with a folder that has no ONNX file, unless it has what is needed."""
    if "adapter_config.json" in names and config is None:
        raise UnsupportedModelError(f"{show(folder)}: a LoRA adapter, not a model; merge it into its base model first")
    if weights and config is None:
        raise ModelFileError(f"{show(folder)}: has {show(Path(weights[0].name))} but no {CONFIG}")
    others = [name for name in names if name.lower().endswith(_OTHER_WEIGHTS)]
    if not weights and others:
        raise UnsupportedModelError(
            f"{show(folder)}: has only {listed(others)}; weights must be safetensors or an ONNX file"
        )
    if config is not None:
        return
    if "snapshots" in names and "blobs" in names:
        raise ModelFileError(
            f"{show(folder)}: a repository of the Hugging Face cache; name one of its snapshots/ folders"
        )
    wanted = f"expected {CONFIG} and *.safetensors, or an *.onnx file"
    found = f"found {listed(names)}" if names else "it is empty"
    raise ModelFileError(f"{show(folder)}: no model here; {wanted}; {found}")


def _config_alone(path: Path) -> ModelFolder:
    """A model to plan with, whatever weights lie beside its config."""
    folder = path.parent.resolve()
    return ModelFolder(folder, "huggingface", None, (), read_json(folder / CONFIG), None)


def _onnx_model(path: Path) -> ModelFolder:
    """A model named by its ONNX file. The model's folder is the one above when the file lies in `onnx/`."""
    if path.suffix.lower() != ".onnx":
        raise ModelFileError(f"{show(path)}: a file; give an .onnx file or the folder of a model")
    folder = path.parent.resolve()
    if folder.name == "onnx" and any((folder.parent / name).is_file() for name in (CONFIG, *TOKENIZERS)):
        folder = folder.parent
    return ModelFolder(
        folder=folder,
        kind="onnx",
        onnx=path.absolute(),
        safetensors_files=(),
        config=read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None,
        tokenizer_model=_optional(folder, "tokenizer.model"),
        generation_config=read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else None,
        genai_config=_genai_config(path),
    )


def _genai_config(onnx_file: Path | None) -> Mapping[str, Any] | None:
    """The genai_config.json beside an ONNX file."""
    path = None if onnx_file is None else onnx_file.parent / GENAI_CONFIG
    return read_json(path) if path is not None and path.is_file() else None


def _optional(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.is_file() and real_file(path) else None


def _onnx_file(folder: Path, names: list[str]) -> Path | None:
    """The decoder among a folder's ONNX files; the usual names win over others."""
    for place, inside in ((folder, names), (folder / "onnx", _names_in(folder / "onnx"))):
        found = [name for name in inside if name.endswith(".onnx") and (place / name).is_file()]
        usual = [name for name in (_decoder_file(place, inside), *ONNX_NAMES) if name in found]
        if usual or len(found) == 1:
            return place / (usual or found)[0]
        if found:
            raise ModelFileError(
                f"{show(place)}: several ONNX files ({listed(found, 8)}); give the path of one of them"
            )
    return None


def _decoder_file(folder: Path, names: list[str]) -> str | None:
    """The ONNX file that the folder's genai_config.json names as the decoder."""
    value: Any = read_json(folder / GENAI_CONFIG) if GENAI_CONFIG in names else {}
    for key in ("model", "decoder", "filename"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _weight_files(folder: Path, names: list[str], weight_map: Mapping[str, str]) -> tuple[Path, ...]:
    """The safetensors files of a folder in order, or () when there are none."""
    if WEIGHTS in names:
        return (folder / WEIGHTS,)
    if weight_map:
        shards = sorted(set(weight_map.values()))
        _check_none_missing(folder, [name for name in shards if name not in names])
        return tuple(folder / name for name in shards)
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if len(found) > 1 or any(_SHARD.fullmatch(name) for name in found):
        parts = [_SHARD.fullmatch(name) for name in found]
        totals = {(part[1], part[3]) if part else None for part in parts}
        if len(totals) > 1 or None in totals:
            raise ModelFileError(
                f"{show(folder)}: several safetensors files ({listed(found)}), no {WEIGHTS_INDEX} to say which belong"
            )
        stem, total = next(iter(totals - {None})) or ("", "")
        wanted = (f"{stem}-{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1))
        _check_none_missing(folder, [name for name in wanted if name not in found])
    return tuple(folder / name for name in found)


def shard_names(index: Path) -> list[str]:
    """The files that a `model.safetensors.index.json` maps tensors to: plain names, sorted."""
    return sorted(set(read_weight_map(index).values()))


def read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by a `model.safetensors.index.json`. Raises ModelFileError."""
    weight_map = read_json(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{show(index)}: weight_map is {show(weight_map)}, must map tensors to files")
    for tensor, name in weight_map.items():
        # A plain name only: a path could reach any file of the machine.
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
            raise ModelFileError(
                f"{show(index)}: weight_map[{show(tensor)}] is {show(name)}, must be a .safetensors file of this folder"
            )
    return weight_map


def _check_none_missing(folder: Path, missing: list[str]) -> None:
    if missing:
        raise ModelFileError(f"{show(folder)}: shards are missing: {listed(missing)}; download them again")
