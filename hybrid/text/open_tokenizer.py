"""Which tokenizer a model has: by the files in its folder."""

from operator import attrgetter
from pathlib import Path

from hybrid.errors import TokenizerError
from hybrid.shown import listed
from hybrid.text.model_files import home_of
from hybrid.text.special_tokens import read_special_tokens
from hybrid.text.tokenizer import Tokenizer

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
_OTHER_FILES = ("*.tiktoken", "tiktoken.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "sp*.model")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, or of the folder that a model file lies in.

    `tokenizer.json` wins, as in transformers; `tokenizer.model` (sentencepiece) is read when there is no such file
    or when it cannot be read, which `notes` then tells.
    """
    home = home_of(folder)
    has_json, has_model = (home / JSON_FILE).is_file(), (home / SENTENCEPIECE_FILE).is_file()
    if not has_json and not has_model:
        raise TokenizerError(f"{home}: no {JSON_FILE} and no {SENTENCEPIECE_FILE}; {_other_files(home)}")
    special = read_special_tokens(home)
    notes: tuple[str, ...] = ()
    if has_json:
        from hybrid.text.json_tokenizer import read_json_tokenizer

        try:
            return read_json_tokenizer(home / JSON_FILE, special)
        except TokenizerError as error:
            if not has_model:
                raise
            notes = (f"{error}; {SENTENCEPIECE_FILE} is used instead",)
    from hybrid.text.sentencepiece_tokenizer import read_sentencepiece

    return read_sentencepiece(home / SENTENCEPIECE_FILE, special, notes)


def _other_files(home: Path) -> str:
    """Advise on a folder with neither file, by the files of other kinds that it has."""
    found = sorted(name for kind in _OTHER_FILES for name in map(attrgetter("name"), home.glob(kind)))
    if not found:
        return "a tokenizer is needed there"
    return f"{listed(found)} cannot be read; save_pretrained() of the tokenizer in transformers writes a {JSON_FILE}"
