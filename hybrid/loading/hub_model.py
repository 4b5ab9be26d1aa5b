"""Models of the Hugging Face hub: what of a repository is needed, brought into the cache."""

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from hybrid.errors import ModelFileError
from hybrid.families.registry import check_class, parse_config
from hybrid.progress import Progress
from hybrid.source.folder import CONFIG, WEIGHTS_INDEX, read_json, shard_names
from hybrid.source.hub_errors import Pause
from hybrid.source.hub_files import Choice, RepositoryFile, choose_files
from hybrid.source.hub_repository import DEFAULT_REVISION, Snapshot, fetch, look_up, look_up_in_cache
from offload.spec.units import format_bytes

_MOST_SETTINGS_BYTES = 1 << 28


def bring_model(
    repository: str,
    revision: str | None,
    variant: str | None,
    config_only: bool,
    allow_unused: bool,
    progress: Progress,
    pause: Pause,
) -> Path:
    """Look a model up and download what is missing of it; see `resolve_model`, which has the same arguments."""
    progress.on_stage(f"Looking up {repository}", 0)
    snapshot = look_up(repository, revision or DEFAULT_REVISION, pause)
    choice = choose_files(snapshot.label, snapshot.files, variant)

    def bring(files: tuple[RepositoryFile, ...]) -> None:
        fetch(snapshot, files, progress, pause)

    _check_settings(snapshot, (*choice.settings, *((choice.index,) if choice.index else ())))
    bring(choice.settings)
    if choice.onnx is not None:
        path = _bring_onnx(snapshot, choice, choice.onnx, bring)
    else:
        _check_config(snapshot, allow_unused)
        path = _bring_safetensors(snapshot, choice, config_only, bring)
    # An offline run is better off with an older commit that is whole than with the config of a newer one.
    snapshot.remember(only_if_new=path.name == CONFIG)
    return path


def find_in_cache(repository: str, revision: str | None) -> Path | None:
    """Look in the cache for a model: gives its folder, its config where weights are missing, None for nothing."""
    snapshot = look_up_in_cache(repository, revision or DEFAULT_REVISION)
    if snapshot is None:
        return None
    index = snapshot.files.get(WEIGHTS_INDEX)
    if index is not None and not snapshot.files.keys() >= {*shard_names(snapshot.folder / index.name)}:
        return snapshot.folder / CONFIG
    return snapshot.folder


def _check_settings(snapshot: Snapshot, files: Iterable[RepositoryFile]) -> None:
    """Refuse settings that are as large as weights: they would fill the disk before anybody looked into them."""
    for file in files:
        if file.nbytes > _MOST_SETTINGS_BYTES:
            raise ModelFileError(
                f"{snapshot.repository}/{file.name}: {format_bytes(file.nbytes)}, more than the "
                f"{format_bytes(_MOST_SETTINGS_BYTES)} that a file of settings may have"
            )


def _check_config(snapshot: Snapshot, allow_unused: bool) -> None:
    """Refuse a model that cannot run: better to know before gigabytes are downloaded than after."""
    content, where = read_json(snapshot.folder / CONFIG), f"{snapshot.repository}/{CONFIG}"
    parse_config(content, where)
    check_class(content, where, allow_unused)


def _bring_safetensors(
    snapshot: Snapshot, choice: Choice, config_only: bool, bring: Callable[[tuple[RepositoryFile, ...]], None]
) -> Path:
    if choice.index is not None:
        bring((choice.index,))
        names = shard_names(snapshot.folder / choice.index.name)
        weights = tuple(snapshot.file(name) for name in names)
    else:
        weights = choice.weights
    if config_only:
        return snapshot.folder / CONFIG if snapshot.lacks(weights) else snapshot.folder
    bring(weights)
    return snapshot.folder


def _bring_onnx(
    snapshot: Snapshot,
    choice: Choice,
    onnx: RepositoryFile,
    bring: Callable[[tuple[RepositoryFile, ...]], None],
) -> Path:
    # The file itself comes last: where it is, its weights are, unless they have names of their own.
    bring((*choice.weights, onnx))
    from hybrid.formats.onnx_graph import external_files

    path = snapshot.folder / onnx.name
    folder = PurePosixPath(onnx.name).parent
    named = sorted(str(folder / name) for name in external_files(path))
    # Those that leave the folder are in no listing; opening the model says what is wrong with them.
    bring(tuple(snapshot.file(name) for name in named if name in snapshot.files))
    return path
