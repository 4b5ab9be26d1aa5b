"""Text to token ids and back, over sentencepiece (imported here only, and late)."""

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybrid.errors import ModelFileError, TokenizerError

MODEL_FILE = "tokenizer.model"
SPACE = "▁"  # how sentencepiece writes a space inside a piece
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8


class Tokenizer:
    """The tokenizer of one model. `bos_id` and `eos_id` are None where it has none."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int | None = processor.bos_id() if processor.bos_id() >= 0 else None
        self.eos_id: int | None = processor.eos_id() if processor.eos_id() >= 0 else None
        self._pieces: dict[int, str | bytes] = {}
        # Two rules of the model are not readable from Python, so they are read off what it does with them.
        space = processor.piece_to_id(SPACE)
        has_space = not processor.is_unknown(space)
        self._strips_all_spaces = has_space and processor.decode([space, space]) == ""
        self._strips_one_space = self._find_strips_one_space()

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids of a text, after the id that begins every text where the model has one."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text is not valid Unicode at character {error.start}; give it as UTF-8"
            ) from None
        begin = [self.bos_id] if add_bos and self.bos_id is not None else []
        return begin + list(self._processor.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: a whole text, from its beginning."""
        stream = TextStream(self)
        return "".join([stream.feed(token_id) for token_id in ids]) + stream.flush()

    def piece(self, token_id: int) -> str | bytes:
        """What one id stands for: text with its spaces as "▁", or a byte of a character that has no piece.

        Control tokens have no text, nor have ids past the tokenizer's (embeddings are often padded).
        """
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id)
        return known

    def strip_first(self, piece: str) -> tuple[str, bool]:
        """A piece at the start of a text without the space that encoding adds, and whether no more may go."""
        if piece.startswith(SPACE) and (self._strips_one_space or self._strips_all_spaces):
            return piece[1:], not self._strips_all_spaces
        return piece, False

    def _read_piece(self, token_id: int) -> str | bytes:
        processor = self._processor
        if not 0 <= token_id < self.vocab_size or processor.is_control(token_id):
            return ""
        if processor.is_byte(token_id):
            return bytes([int(processor.id_to_piece(token_id)[3:5], 16)])  # "<0xE2>"
        if processor.is_unknown(token_id):
            return str(processor.decode([token_id]))
        return str(processor.id_to_piece(token_id))

    def _find_strips_one_space(self) -> bool:
        for token_id in range(self.vocab_size):
            piece = self.piece(token_id)
            if isinstance(piece, str) and piece.startswith(SPACE):
                return bool(self._processor.decode([token_id]) != piece.replace(SPACE, " "))
        return False


class TextStream:
    """Token ids in, text out as soon as it is certain; the pieces joined are the text decoded at once.

    `after` is the prompt that the text continues: its last characters decide whether a leading space is kept.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._at_start = True
        for token_id in after:
            self.feed(token_id)
        self.flush()

    def feed(self, token_id: int) -> str:
        """The text that is certain after one more id; empty for control tokens and unfinished characters."""
        piece = self._tokenizer.piece(token_id)
        if isinstance(piece, bytes):
            return self._mark_invalid(self._bytes.decode(piece))
        text = self.flush()  # an unfinished character cannot go on after a piece
        if self._at_start:
            piece, space_taken = self._tokenizer.strip_first(piece)
            self._at_start = not (piece or space_taken)
        return text + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """The end of the text: bytes of a character that never became whole, as U+FFFD."""
        return self._mark_invalid(self._bytes.decode(b"", final=True))

    def _mark_invalid(self, text: str) -> str:
        if text:
            self._at_start = False
        return ESCAPED_BYTE.sub("\ufffd", text)  # one for each byte, as sentencepiece does


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, or of the folder that a model file lies in."""
    path = _find_file(folder)
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: cannot be read as a sentencepiece model: {reason}") from None
    return Tokenizer(processor)


def _find_file(folder: Path) -> Path:
    try:
        if not folder.exists():
            raise ModelFileError(f"{folder}: no such model folder")
        home = folder if folder.is_dir() else folder.parent
        if (home / MODEL_FILE).is_file():
            return home / MODEL_FILE
        has_json = (home / "tokenizer.json").is_file()
    except OSError as error:
        raise ModelFileError(f"{folder}: cannot be opened: {error.strerror}") from None
    if has_json:
        raise TokenizerError(f"{home}: tokenizer.json is not read yet; a {MODEL_FILE} (sentencepiece) is needed")
    raise TokenizerError(f"{home}: no {MODEL_FILE}; the model's sentencepiece file is needed there")
