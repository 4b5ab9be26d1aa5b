"""Small tokenizers of many makes: every model, pre-tokenizer, normaliser, decoder and file that names a token."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ["hello", "world", "the", "cat", "sat", "on", "stop", "do", "not", "it", "Hello", "a", "b", "c", "x", "y"]
CHARACTERS = sorted({*"abcdefghijklmnopqrstuvwxyzABCHé0123456789.,!?'<>|/_[]:"})
NAMES = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>"]
Backend = Callable[[], Tokenizer]


def byte_level(regex: bool = True, space: bool = False) -> Tokenizer:
    """BPE over bytes, as GPT-2: the six names, then bytes, then a few merges."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("h", "e"), ("l", "l"), ("Ġ", "a"), ("Ċ", "Ċ")]
    pieces = [*NAMES, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback(steps: list[Any] | None = None, normal: Any = None, before: Any = None) -> Tokenizer:
    """BPE with single bytes as a fallback, as Llama 2."""
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "a"), ("l", "l"), ("▁", "▁")]
    pieces = [*NAMES, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CHARACTERS, *("".join(m) for m in merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    usual = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if before is None:
        tokenizer.normalizer = normal or usual
    else:
        tokenizer.pre_tokenizer = before
    last = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(last if steps is None else steps)
    return tokenizer


def unigram(byte_fallback: bool = False, scheme: str = "always") -> Tokenizer:
    """Pieces with scores, as T5."""
    pieces = [*NAMES, "▁", *CHARACTERS, *WORDS[:10], *(f"▁{word}" for word in WORDS[:10])]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    scores = [(piece, -1.0 - i / 50 - 3 * (len(piece) == 1)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def word_piece(cleanup: bool = True) -> Tokenizer:
    """Words and ends of words, as BERT."""
    pieces = [*NAMES, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *(w for w in WORDS if len(w) > 1)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return tokenizer


def word_level(decoder: Any = None, before: Any = None) -> Tokenizer:
    """Whole words; without a decoder they are joined by spaces."""
    pieces = [*NAMES, *WORDS, *(c for c in CHARACTERS if c not in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = before or pre_tokenizers.Whitespace()
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def word_ends() -> Tokenizer:
    """BPE whose last pieces of words are marked, as GPT-1."""
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
    pieces = [*NAMES, *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), *("".join(pair) for pair in merges)]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", end_of_word_suffix="</w>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def changed(make: Backend, **parts: Any) -> Backend:
    """A make with other parts: `pre_tokenizer`, `normalizer`, `decoder`, `post_processor`."""

    def build() -> Tokenizer:
        tokenizer = make()
        for part, value in parts.items():
            setattr(tokenizer, part, value)
        return tokenizer

    return build


def adding(make: Backend, *tokens: AddedToken) -> Backend:
    """A make whose tokenizer.json has added tokens."""

    def build() -> Tokenizer:
        tokenizer = make()
        tokenizer.add_tokens(list(tokens))
        return tokenizer

    return build


def described(**flags: bool) -> dict[str, bool]:
    """The flags of a token as JSON writes them."""
    usual = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return usual | flags


def template(single: str) -> processors.TemplateProcessing:
    """A post-processor that adds <s> and </s>."""
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])


def _split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_CHATML = {
    "eos_token": "<|im_end|>",
    "added_tokens_decoder": {
        "3": {"content": "<|im_start|>", **described()},
        "4": {"content": "<|im_end|>", **described()},
    },
}
_GEMMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]

BACKENDS: dict[str, Backend] = {
    "byte-level": byte_level,
    "byte-level without regex": lambda: byte_level(regex=False),
    "byte-level with a first space": lambda: byte_level(space=True),
    "byte-level NFC, digits": changed(
        byte_level,
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    ),
    "byte-level NFKC lowercase": changed(
        byte_level, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "byte-level Llama 3": changed(
        byte_level,
        pre_tokenizer=pre_tokenizers.Sequence([_split(_LLAMA_3), _BYTES]),
        post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A")]),
    ),
    "byte-level punctuation": changed(
        byte_level, pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), _BYTES])
    ),
    "byte-level no decoder": changed(byte_level, decoder=None),
    "byte-level Strip": changed(byte_level, normalizer=normalizers.Strip()),
    "byte-fallback": changed(byte_fallback, post_processor=template("<s> $A")),
    "byte-fallback Metaspace first": lambda: byte_fallback(
        before=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "byte-fallback Gemma": lambda: byte_fallback(_GEMMA, normalizers.Replace(" ", "▁")),
    "byte-fallback Fuse first": lambda: byte_fallback(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 2, 1)]
    ),
    "byte-fallback by tokens": lambda: byte_fallback([decoders.ByteFallback(), decoders.Metaspace()]),
    "byte-fallback begin and end": changed(byte_fallback, post_processor=template("<s> $A </s>")),
    "byte-fallback StripAccents": lambda: byte_fallback(
        normal=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Replace(" ", "▁")])
    ),
    "unigram": unigram,
    "unigram bytes": lambda: unigram(byte_fallback=True),
    "unigram never": lambda: unigram(scheme="never"),
    "unigram first": lambda: unigram(scheme="first"),
    "unigram no decoder": changed(unigram, decoder=None),
    "word piece": changed(word_piece, post_processor=processors.BertProcessing(("</s>", 2), ("<s>", 1))),
    "word piece plain": lambda: word_piece(cleanup=False),
    "word level": word_level,
    "word level WordPiece": lambda: word_level(decoders.WordPiece(prefix="_", cleanup=False)),
    "word level split": lambda: word_level(before=_split(r"\s+", "removed")),
    "word level spaces": lambda: word_level(before=pre_tokenizers.WhitespaceSplit()),
    "word level Replace": lambda: word_level(
        decoders.Sequence([decoders.Replace(Regex("[aeiou]"), "*"), decoders.Strip("*", 1, 0), decoders.Fuse()])
    ),
    "word ends": word_ends,
}
_LLAMA = {
    "tokenizer_class": "LlamaTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
_TOOL = AddedToken("<tool>")

# name: backend, tokenizer_config.json, other files
MAKES: dict[str, tuple[Backend, dict[str, Any], dict[str, Any]]] = {
    **{name: (backend, {}, {}) for name, backend in BACKENDS.items()},
    **{f"{name}, named by the config": (BACKENDS[name], _CHATML, {}) for name in ("byte-level", "byte-fallback")},
    **{
        f"{flag} in the file": (adding(byte_level, AddedToken("<|im_start|>", special=True, **{flag: True})), {}, {})
        for flag in ("lstrip", "rstrip", "single_word", "normalized")
    },
    **{
        f"{flag} in the config": (
            adding(byte_fallback, AddedToken("<|im_start|>", special=True)),
            {"added_tokens_decoder": {"3": {"content": "<|im_start|>", **described(**{flag: True})}}},
            {},
        )
        for flag in ("lstrip", "rstrip", "single_word", "normalized")
    },
    "LlamaTokenizer": (byte_fallback, _LLAMA, {}),
    "LlamaTokenizer, not legacy": (byte_fallback, {**_LLAMA, "legacy": False, "add_prefix_space": True}, {}),
    "LlamaTokenizer without a first space": (byte_fallback, {**_LLAMA, "add_prefix_space": False}, {}),
    "LlamaTokenizer, bytes": (byte_level, {**_LLAMA, "legacy": False}, {}),
    "LlamaTokenizer of another model": (
        byte_fallback,
        {**_LLAMA, "legacy": False},
        {"config": {"model_type": "mistral"}},
    ),
    "not special in the config": (
        adding(byte_level, AddedToken("<tool>", special=True)),
        {"added_tokens_decoder": {"5": {"content": "<tool>", **described(special=False)}}},
        {},
    ),
    "special in the config alone": (
        adding(byte_level, _TOOL),
        {"added_tokens_decoder": {"5": {"content": "<tool>", **described()}}},
        {},
    ),
    "a role makes it special": (adding(byte_level, _TOOL), {"eos_token": "<tool>"}, {}),
    "a role does not where tokens are listed": (
        adding(byte_level, _TOOL),
        {"eos_token": "<tool>", "added_tokens_decoder": {}},
        {},
    ),
    "roles and additional": (
        byte_level,
        {"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<tool>"], "pad_token": None},
        {},
    ),
    "extra as names": (word_piece, {"extra_special_tokens": {"image_token": "<tool>"}, "video_token": "</s>"}, {}),
    "a token map": (
        byte_fallback,
        {"eos_token": "</s>"},
        {"special_tokens_map": {"eos_token": {"content": "<|im_end|>", **described(rstrip=True)}, "bos_token": "<s>"}},
    ),
    "a token map that does not count": (
        byte_level,
        {"eos_token": "</s>", **{"added_tokens_decoder": {"2": {"content": "</s>", **described()}}}},
        {"special_tokens_map": {"eos_token": "<|im_end|>"}},
    ),
    "added_tokens.json": (
        byte_level,
        {"eos_token": "<|im_end|>"},
        {"added_tokens": {"<|im_end|>": 4, "<tool>": 5, "<new>": 269}},
    ),
    "new tokens": (
        word_level,
        {"pad_token": "<pad>", "eos_token": "<end>", "additional_special_tokens": ["<more>"]},
        {},
    ),
    "add_bos_token false, template": (
        changed(byte_level, post_processor=template("<s> $A")),
        {"add_bos_token": False, "bos_token": "<s>"},
        {},
    ),
    "add_bos_token true, no template": (byte_level, {"add_bos_token": True, "bos_token": "<s>"}, {}),
    "split_special_tokens": (adding(byte_level, AddedToken("<s>", special=True)), {"split_special_tokens": True}, {}),
    "clean up, unigram": (unigram, {"clean_up_tokenization_spaces": True}, {}),
    "clean up, byte-level": (byte_level, {"clean_up_tokenization_spaces": True}, {}),
    "clean up, word level": (word_level, {"clean_up_tokenization_spaces": True}, {}),
}
ENDING = ("byte-fallback begin and end", "word piece")  # their post-processor adds an end token
TEXTS = [
    "",
    "hello world the cat",
    "  two  spaces ",
    "tab\tand\n\nlines\r\n",
    "héllo 猫 🙂 e\u0301",
    "<s>a</s>",
    "a  <|im_start|>  b<|im_end|>\n c",
    "x<tool>y <tool> a<|im_start|>a <|im_start|>",
    "<|IM_START|> <pad><new><more> <end>",
    "it 's not . do n't , stop ! a ' b ' 're  .",
    "cat 12345 ABC",
    "▁a ▁▁ <0x41>",
]


def write(name: str, folder: Path) -> Path:
    """The files of a make."""
    backend, config, others = MAKES[name]
    tokenizer = backend()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    for other, content in others.items():
        (folder / f"{other}.json").write_text(json.dumps(content))
    return folder
