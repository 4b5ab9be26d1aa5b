"""A tokenizer.json, over the `tokenizers` library (imported here only, and late)."""

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.errors import TokenizerError
from hybrid.shown import show
from hybrid.source.folder import real_file
from hybrid.text.added_tokens import AddedToken
from hybrid.text.decoding import CleanUp, StreamingDecoder
from hybrid.text.detokenizer import check_unicode, decode_all
from hybrid.text.json_decoder import step_makers
from hybrid.text.special_tokens import SpecialTokens
from offload.spec.units import counted

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import Decoder

_MAX_BYTES = 1 << 27  # Gemma 3's, one of the largest, has 33 MiB
_MAX_GROWTH = 100  # characters that a normaliser or decoder may write for one that it reads
_EMPTY = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


class JsonTokenizer:
    """Text to ids and back as a tokenizer.json says, and the folder's small files about its tokens.

    What those say is added as transformers does: their flags win over the file's, and names without an id are looked
    up or get the next one. The file alone says what texts begin with, but LlamaTokenizer puts leading spaces as
    `legacy` and `add_prefix_space` ask.
    """

    def __init__(self, backend: "Backend", special: SpecialTokens) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._hidden = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        notes = [*special.notes, *_spaced_as_llama(backend, special), *self._add(special)]
        self.special = _named(special, backend)
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max([backend.get_vocab_size(with_added_tokens=True), *[token_id + 1 for token_id in added]])
        self.bos_id = self._find("bos_token")
        self.eos_id = self._find("eos_token")
        self._begin, end = _template_ids(_state(backend.post_processor))
        self.notes = (*notes, *self._begin_notes(), *(_end_note(backend.id_to_token(token_id)) for token_id in end[:1]))
        self._splits_names = special.flags.get("split_special_tokens", False)
        self._tokens: dict[int, str | None] = {}
        self._makers = step_makers(_state(backend.decoder), _library_decoder)
        if special.flags.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE":
            self._makers.append(CleanUp)

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        check_unicode(text)
        with self._lock:  # whether names of special tokens are text is a setting of the whole tokenizer
            self._backend.encode_special_tokens = self._splits_names or not parse_special
            with _explained("the text cannot be written in this vocabulary"):  # it has holes, and no <unk>
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [*self._begin, *ids] if add_bos else ids

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self, ids)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def is_hidden(self, token_id: int) -> bool:
        return self._shown(token_id) is None

    def decoder(self) -> StreamingDecoder:
        return StreamingDecoder(self._shown, [make() for make in self._makers])

    def _shown(self, token_id: int) -> str | None:
        """The token of an id as the vocabulary writes it; None for what is never shown."""
        if token_id not in self._tokens:
            token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
            self._tokens[token_id] = None if token in self._hidden else token
        return self._tokens[token_id]

    def _add(self, special: SpecialTokens) -> list[str]:
        """Add what the small files know; gives a note for each token whose id is another than they say."""
        from tokenizers import AddedToken as LibraryToken

        tokens = _as_they_are_added(special, self._backend)
        known = {token.text: self._backend.token_to_id(token.text) for token in tokens}
        self._backend.add_tokens(
            [
                LibraryToken(
                    token.text,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=token.special,
                )
                for token in tokens
            ]
        )
        self._hidden |= {token.text for token in tokens if token.special}
        notes = []
        for token in tokens:
            given = self._backend.token_to_id(token.text)
            if token.token_id is None or token.token_id == given:
                continue
            if known[token.text] is None:
                raise TokenizerError(f"added token {token.text!r} must get id {token.token_id}, but gets {given}")
            notes.append(f"token {show(token.text)} has id {given} in tokenizer.json, {token.token_id} elsewhere")
        return notes

    def _find(self, role: str) -> int | None:
        name = self.special.names.get(role)
        return self._backend.token_to_id(name) if name else None

    def _begin_notes(self) -> list[str]:
        """A note where tokenizer_config.json and tokenizer.json disagree on what texts begin with."""
        wanted = self.special.flags.get("add_bos_token")
        if wanted is None or wanted == bool(self._begin) or (wanted and self.bos_id is None):
            return []
        first = show(self._backend.id_to_token(self._begin[0])) if self._begin else "no special token"
        return [f"add_bos_token is {str(wanted).lower()}, but texts begin with {first}, as tokenizer.json says"]


def _as_they_are_added(special: SpecialTokens, backend: "Backend") -> list[AddedToken]:
    """The tokens to add, in the order that gives new ones their ids: those with ids, roles, others.

    Unless tokenizer_config.json lists all added tokens, those of tokenizer.json count as listed, and a role makes
    them special.
    """
    own = {
        token_id: AddedToken(
            token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized, token_id
        )
        for token_id, token in backend.get_added_tokens_decoder().items()
    }
    listed = {token.token_id or 0: token for token in special.added}
    if not special.only_config:
        listed |= own
    roles = {token.text for token in special.roles}
    tokens = [listed[token_id] for token_id in sorted(listed)]
    tokens = [token.as_special() if token.text in roles else token for token in tokens]
    known = {token.text for token in (*own.values(), *tokens)}
    for token in (*special.roles, *special.extra):
        if token.text not in known:
            tokens.append(token)
            known.add(token.text)
    return tokens


def _spaced_as_llama(backend: "Backend", special: SpecialTokens) -> list[str]:
    """Give texts their leading space where LlamaTokenizer of transformers does; a note if the file had it elsewhere.

    That class makes these parts anew for Llama models, whatever the file says, unless their pieces are bytes.
    """
    from tokenizers import decoders, pre_tokenizers

    before = [_state(backend.normalizer), _state(backend.pre_tokenizer)]
    is_llamas = special.tokenizer_class == "LlamaTokenizer" and special.model_type in ("", "llama")
    if not is_llamas or type(backend.model).__name__ != "BPE" or "ByteLevel" in json.dumps(before):
        return []
    scheme = "always" if special.flags.get("legacy") else "first"
    scheme = scheme if special.flags.get("add_prefix_space", True) else "never"
    if scheme == (found := _space_scheme(before)):
        return []
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    where = {"always": "after every special token too", "first": "at the start of a text only", "never": "nowhere"}
    return [
        f"a space is put {where[scheme]}, as LlamaTokenizer does with legacy and add_prefix_space of "
        f"tokenizer_config.json; tokenizer.json would put it {where[found]}"
    ]


def _space_scheme(parts: Iterable[Mapping[str, Any]]) -> str:
    """Find where parts of a tokenizer put a leading space: "always" (after special tokens), "first" or "never"."""
    for part in parts:
        inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
        kind = "always" if part.get("type") == "Prepend" else part.get("prepend_scheme") or _space_scheme(inner)
        if kind != "never":
            return str(kind)
    return "never"


def _growth(state: Mapping[str, Any]) -> int:
    """Bound the characters that the steps of a normaliser or decoder may write for one."""
    if state.get("type") == "Replace":
        per_match = max(1, len(state["pattern"].get("String", "")))
        return max(1, -(-len(state["content"]) // per_match)) + ("Regex" in state["pattern"])
    steps = [*state.get("normalizers", ()), *state.get("decoders", ())]
    return math.prod(map(_growth, steps))


def _template_ids(state: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The ids that a post-processor puts before and after a text."""
    kind = state.get("type")
    if kind == "Sequence":
        parts = [_template_ids(part) for part in state["processors"]]
        return [i for begin, _ in reversed(parts) for i in begin], [i for _, end in parts for i in end]
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [state["cls"][1]], [state["sep"][1]]
    if kind != "TemplateProcessing":
        return [], []
    begin: list[int] = []
    ids = begin
    end: list[int] = []
    for item in state["single"]:
        if "Sequence" in item:
            ids = end
        else:
            ids.extend(state["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return begin, end


def _end_note(token: str | None) -> str:
    return f"texts end with {show(token)}, as tokenizer.json says; it is left out, for a prompt goes on"


def _state(part: Any) -> dict[str, Any]:
    """The settings of one part of a tokenizer, as in its file."""
    content = json.loads(part.__getstate__()) if part is not None else {}
    return content if isinstance(content, dict) else {}


def _library_decoder(state: Mapping[str, Any]) -> "Decoder":
    from tokenizers import Tokenizer as Backend

    decoder: Decoder = Backend.from_str(json.dumps(_EMPTY | {"decoder": state})).decoder
    return decoder


def _named(special: SpecialTokens, backend: "Backend") -> SpecialTokens:
    """Special tokens with names for the ids of generation_config.json, where the folder does not speak of them."""
    ids = {"bos_token": special.bos_id, "eos_token": special.eos_id}
    names = {role: backend.id_to_token(token_id) for role, token_id in ids.items() if token_id is not None}
    return replace(special, names={role: name for role, name in names.items() if name} | dict(special.names))


def read_json_tokenizer(path: Path, special: SpecialTokens) -> JsonTokenizer:
    """Read a tokenizer.json, or raise TokenizerError or ModelFileError."""
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError:
        raise TokenizerError(f"{path}: needs the tokenizers package; pip install tokenizers") from None
    real = real_file(path)
    with _explained(f"{path}: cannot be read as a tokenizer"):
        with real.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            size = real.stat().st_size
            raise TokenizerError(f"{counted(size, 'byte')}, more than the {_MAX_BYTES:,} a tokenizer may have")
        backend = Backend.from_str(data.decode())
        for part in (backend.normalizer, backend.decoder):
            if (growth := _growth(_state(part))) > _MAX_GROWTH:
                raise TokenizerError(f"it could make text {growth:.3g} times longer, more than {_MAX_GROWTH}")
        backend.no_truncation()  # limits that were set for training
        backend.no_padding()
        return JsonTokenizer(backend, special)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever the library raises into a TokenizerError on one line, which begins with `what`."""
    try:
        yield
    except Exception as error:  # it raises plain Exception for whatever is wrong with a file
        raise TokenizerError(f"{what}: {_one_line(error)}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's panics; pyo3 does not export their class
            raise
        raise TokenizerError(f"{what}: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
