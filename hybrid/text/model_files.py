"""Finds a model's small files."""

from pathlib import Path

from hybrid.errors import ModelFileError

CONFIG = "config.json"


def home_of(model: Path) -> Path:
    """The folder of a model that is given as a folder or as one of its files; ModelFileError if there is none.

    A file in `onnx/` belongs to the folder above, where `config.json` is.
    """
    try:
        if not model.exists():
            raise ModelFileError(f"{model}: no such model folder")
        if model.is_dir():
            return model
        above = model.absolute().parent.parent
        return above if model.absolute().parent.name == "onnx" and (above / CONFIG).is_file() else model.parent
    except OSError as error:
        raise ModelFileError(f"{model}: cannot be opened: {error.strerror}") from None
