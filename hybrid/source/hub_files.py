"""Which files of a model repository are needed, and which ONNX file when there are several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hybrid.errors import ModelFileError, UsageError
from hybrid.shown import listed
from hybrid.source.folder import CONFIG, GENAI_CONFIG, GENERATION_CONFIG, ONNX_NAMES, TOKENIZERS, WEIGHTS, WEIGHTS_INDEX
from hybrid.source.part_file import Checksum
from offload.spec.units import format_bytes

SETTINGS = (
    CONFIG,
    GENERATION_CONFIG,
    GENAI_CONFIG,
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
PLAIN = "fp32"  # what `model.onnx` is called beside `model_fp16.onnx` and the like

_ONNX_FOLDERS = ("", "onnx/")
_DUPLICATES = ("adapter_", "consolidated")  # of other programs: LoRA, Mistral's own loader


@dataclass(frozen=True)
class RepositoryFile:
    """A file of a repository, with the checksum that the hub lists. Weights are in large-file storage, with SHA-256."""

    name: str
    nbytes: int
    checksum: Checksum | None = None


@dataclass(frozen=True)
class Choice:
    """The files of one model. `index` says which shards there are, when that is not known from the names."""

    settings: tuple[RepositoryFile, ...]
    weights: tuple[RepositoryFile, ...] = ()
    index: RepositoryFile | None = None
    onnx: RepositoryFile | None = None


def choose_files(where: str, files: Mapping[str, RepositoryFile], variant: str | None) -> Choice:
    """Choose the files of a model among all `files` of a repository. Safetensors win unless a variant is named.

    A variant is the end of an ONNX file's name: "q4" for `model_q4.onnx`, "fp32" for `model.onnx`. Raises UsageError
    for one that is not there or is needed, ModelFileError when there is no model; messages begin with `where`.
    """
    settings = tuple(files[name] for name in SETTINGS if name in files)
    if variant is None and CONFIG in files:
        if WEIGHTS in files:
            return Choice(settings, (files[WEIGHTS],))
        if WEIGHTS_INDEX in files:
            return Choice(settings, index=files[WEIGHTS_INDEX])
        if weights := tuple(file for name, file in files.items() if _is_safetensors(name)):
            return Choice(settings, weights)
    onnx = _choose_onnx(where, files, variant)
    return Choice(settings, _beside(onnx, files.values()), onnx=onnx)


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name and not name.startswith(_DUPLICATES)


def _choose_onnx(where: str, files: Mapping[str, RepositoryFile], variant: str | None) -> RepositoryFile:
    found: dict[str, RepositoryFile] = {}
    for folder in _ONNX_FOLDERS:
        found = {**_variants(files, folder), **found}
    if not found:
        raise _no_model(where, files, variant)
    known = ", ".join(
        f"{show_variant(label)} ({format_bytes(_whole_bytes(file, files))})" for label, file in sorted(found.items())
    )
    if variant is not None:
        if variant not in found:
            raise UsageError(f"--variant {variant}: {where} has {known}")
        return found[variant]
    if len(found) > 1:
        example = next((label for label in ("fp16", "q4") if label in found), min(found))
        raise UsageError(
            f"{where}: has several ONNX files: {known}; choose one, for example --variant {show_variant(example)}"
        )
    return next(iter(found.values()))


def show_variant(label: str) -> str:
    """A label out of file names as printable text."""
    return label if label.isprintable() else ascii(label)


def _variants(files: Mapping[str, RepositoryFile], folder: str) -> dict[str, RepositoryFile]:
    """The decoders among the ONNX files of a folder, by what they are called. The usual names win over others."""
    names = [name[len(folder) :] for name in files if name.startswith(folder) and name.endswith(".onnx")]
    stems = [name.removesuffix(".onnx") for name in names if "/" not in name]
    for usual in (name.removesuffix(".onnx") for name in ONNX_NAMES):
        longer = [f"{name.removesuffix('.onnx')}" for name in ONNX_NAMES if name.startswith(f"{usual}_")]
        own = [stem for stem in stems if stem.startswith(f"{usual}_") and not stem.startswith(tuple(longer))]
        found = {stem.removeprefix(f"{usual}_"): files[f"{folder}{stem}.onnx"] for stem in own}
        if usual in stems:
            found.setdefault(PLAIN, files[f"{folder}{usual}.onnx"])
        if found:
            return found
    return {stem: files[f"{folder}{stem}.onnx"] for stem in stems}


def _beside(onnx: RepositoryFile, files: Iterable[RepositoryFile]) -> tuple[RepositoryFile, ...]:
    """The external data of an ONNX file as it is usually named: `model.onnx_data`, `model.onnx.data`, numbered too."""
    stem = onnx.name.removesuffix("onnx")
    return tuple(
        file
        for file in files
        if file.name != onnx.name and (file.name.startswith(onnx.name) or file.name == f"{stem}data")
    )


def _whole_bytes(onnx: RepositoryFile, files: Mapping[str, RepositoryFile]) -> int:
    return onnx.nbytes + sum(file.nbytes for file in _beside(onnx, files.values()))


def _no_model(where: str, files: Mapping[str, RepositoryFile], variant: str | None) -> Exception:
    if variant is not None and any(_is_safetensors(name) for name in files):
        return UsageError(f"--variant {variant}: {where} has no ONNX files, only safetensors")
    if "adapter_config.json" in files:
        return ModelFileError(f"{where}: a LoRA adapter, not a model; merge it into its base model first")
    largest = sorted(files.values(), key=lambda file: -file.nbytes)
    found = f"found {listed([file.name for file in largest])}" if largest else "it is empty"
    return ModelFileError(
        f"{where}: no weights that can be run: {CONFIG} with *.safetensors, or an .onnx file there or in onnx/; {found}"
    )
