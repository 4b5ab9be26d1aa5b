"""Models by name: `org/name`, or `org/name@revision`, to a path in the Hugging Face cache that `find_model` takes."""

import time
from pathlib import Path

from hybrid.errors import ModelFileError, UsageError
from hybrid.progress import Progress
from hybrid.shown import show
from hybrid.source.folder import hub_name, is_there
from hybrid.source.hub_errors import Pause
from hybrid.source.hub_files import RepositoryFile, choose_files


def resolve_model(
    name_or_path: str | Path,
    variant: str | None = None,
    *,
    config_only: bool = False,
    allow_unused: bool = False,
    progress: Progress | None = None,
    pause: Pause = time.sleep,
) -> Path:
    """The folder or ONNX file of a model, downloaded first when it is the name of one on the hub.

    What lies at the path wins over the hub. `variant` names one of several ONNX files: "fp16", "q4". With
    `config_only` a model of safetensors comes without them, which is enough to plan; an ONNX file always comes whole,
    since it is the plan's input. A class that is not known is refused before its weights come, unless `allow_unused`.
    `pause` waits some seconds before another attempt. Raises ModelError or UsageError.
    """
    local = Path(name_or_path).expanduser()
    name = hub_name(str(name_or_path))
    if is_there(local) or name is None:
        return local if variant is None else _local_variant(local, variant)
    from hybrid.loading.hub_model import bring_model  # with all that speaks with a hub

    return bring_model(*name, variant, config_only, allow_unused, progress or Progress(), pause)


def cached_model(name_or_path: str | Path) -> Path:
    """As `resolve_model`, but nothing is downloaded: the config alone where weights are not in the cache.

    Raises ModelFileError for a name of which nothing is.
    """
    local = Path(name_or_path).expanduser()
    name = hub_name(str(name_or_path))
    if is_there(local) or name is None:
        return local
    from hybrid.loading.hub_model import find_in_cache

    path = find_in_cache(*name)
    if path is None:
        raise ModelFileError(f"{name_or_path}: no such folder, and not downloaded yet")
    return path


def _local_variant(path: Path, variant: str) -> Path:
    """The ONNX file of a local folder that a variant means."""
    if not path.is_dir():
        kind = "is a file" if path.is_file() else "is no such folder"
        raise UsageError(f"--variant {variant}: {show(path)} {kind}; variants are of folders and hub names")
    paths = [file for file in sorted([*path.glob("*"), *path.glob("onnx/*")]) if file.is_file()]
    files = [RepositoryFile(file.relative_to(path).as_posix(), file.stat().st_size) for file in paths]
    onnx = choose_files(show(path), {file.name: file for file in files}, variant).onnx
    assert onnx is not None  # a variant is one
    return path / onnx.name
