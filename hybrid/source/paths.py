"""File names that come out of model files, checked before they are opened."""

from pathlib import Path, PurePosixPath

from hybrid.errors import ModelFileError


def resolve_in_folder(folder: Path, name: str, where: str) -> Path:
    """The real path of file `name` in `folder`, links resolved.

    The Hugging Face cache keeps `snapshots/<revision>/<file>` as links into the `blobs` folder of the same
    repository, which may be links in turn into the `blobs` folder that all repositories of the cache share; so a link
    may lead there. Raises ModelFileError, beginning with `where`, for a name or link
    that leaves the folder and for a file that is not there.
    """
    plain = PurePosixPath(name)
    if not name or plain.is_absolute() or ".." in plain.parts or "\\" in name or not name.isprintable():
        raise ModelFileError(f"{where}: file name {name!r} must be a plain relative path inside {folder}")
    real = (folder / plain).resolve()
    if not real.is_file():
        raise ModelFileError(f"{where}: file {folder / plain} is missing")
    real_folder = folder.resolve()
    allowed = [real_folder, *_blobs(real_folder)]
    if not any(real.is_relative_to(root) for root in allowed):
        raise ModelFileError(f"{where}: {folder / plain} leads out of its folder, to {real}")
    return real


def _blobs(folder: Path) -> list[Path]:
    """Find the cache's files of the hub repository that `folder` is a snapshot of, if it is one."""
    for parent in folder.parents:
        if parent.name == "snapshots":
            repository = parent.parent
            shared = [repository.parent / "blobs"] if repository.name.startswith("models--") else []
            return [repository / "blobs", *shared]
    return []
