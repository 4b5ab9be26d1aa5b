"""An engine with its tokenizer: text in, text out. What notebooks use, and what the command line is built on."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.errors import TokenizerError
from hybrid.loading.resolve import resolve_model
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.progress import Progress
from hybrid.show.progress import ProgressLine
from hybrid.source.folder import find_model
from hybrid.text.arguments import check_arguments, checked, sampling_hints, stop_texts
from hybrid.text.chat_template import ChatTemplate, Message, expect_chat_template, load_chat_template
from hybrid.text.detokenizer import TextStream
from hybrid.text.generate import Generation, GenerationStats, generate, text_of
from hybrid.text.generation_defaults import GenerationDefaults, merge_sampling, read_generation_defaults
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sampling import SamplingSettings
from hybrid.text.stop_words import StopWords
from hybrid.text.stopping import end_ids
from hybrid.text.tokenizer import Tokenizer
from offload.observe.timeline import Timeline

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine


_TEXT_HINTS = {"prompt": str, "max_tokens": int, "raw": bool, "stop": object}


class TextModel:
    """A loaded model that completes text. Close it, or use it as a context manager, to give VRAM back.

    Threads and asyncio tasks may share it: texts come one after the other, each as it would be alone. Where the main
    thread (or a task in it) begins a text before it has read a stream of its own to the end, that stream is superseded,
    and raises SupersededError when it is read on.

    `template` is the model's own chat template, if it has one; `defaults` what its makers recommend.
    """

    def __init__(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        defaults: GenerationDefaults | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.defaults = defaults or GenerationDefaults()
        self.template = template
        self.last_stats: GenerationStats | None = None

    def prompt_ids(self, prompt: str, raw: bool = False) -> list[int]:
        """The ids of a prompt: as a user's message in the chat template, or as it is when `raw` or without one.

        Raises TokenizerError when the tokenizer is another model's.
        """
        if self.template is None or raw:
            ids = self.tokenizer.encode(prompt)
        else:
            rendered = self.template.render([Message("user", prompt)])
            ids = self.tokenizer.encode(rendered, add_bos=False, parse_special=True)
        self._check_vocabulary(ids)
        return ids

    def begin(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, max_tokens: int
    ) -> tuple[Generation, TextStream]:
        """Start a completion: its token ids, and what turns them into text. The cache begins anew."""
        generation = generate(self.engine, prompt_ids, sampling, max_tokens, self.stop_ids, is_fresh=True)
        return generation, TextStream(self.tokenizer, after=prompt_ids)

    def stream(
        self, prompt: str, max_tokens: int = 256, raw: bool = False, stop: str | Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Complete `prompt`, piece by piece, up to the first of the `stop` texts, or the only one.

        `sampling` takes the fields of `SamplingSettings` (temperature, top_k, top_p, seed, ...); what is not given is
        as the model's makers recommend, greedy where they don't. `last_stats` tells afterwards what it took. Raises
        UsageError at once for arguments that cannot be.
        """
        return self._stream("stream", prompt, max_tokens, raw, stop, sampling)

    def _stream(
        self,
        function: str,
        prompt: str,
        max_tokens: int,
        raw: bool,
        stop: str | Sequence[str],
        sampling: Mapping[str, Any],
    ) -> Iterator[str]:
        given = {"prompt": prompt, "max_tokens": max_tokens, "raw": raw, "stop": stop, **sampling}
        check_arguments(function, given, {**_TEXT_HINTS, **sampling_hints()})
        words = StopWords(stop_texts(function, stop))
        settings = merge_sampling(self.defaults.sampling, **sampling)
        return self._pieces(self.prompt_ids(prompt, raw), settings, max_tokens, words)

    def _pieces(
        self, prompt_ids: Sequence[int], settings: SamplingSettings, max_tokens: int, words: StopWords
    ) -> Iterator[str]:
        generation, text = self.begin(prompt_ids, settings, max_tokens)
        try:
            yield from text_of(generation, text, words)
        finally:
            generation.stop()  # where it is left before its end; the engine is free for the next text
            self.last_stats = generation.stats

    def generate(
        self, prompt: str, max_tokens: int = 256, raw: bool = False, stop: str | Sequence[str] = (), **sampling: Any
    ) -> str:
        """Complete `prompt`; gives the whole completion, without the prompt. See `stream`."""
        return "".join(self._stream("generate", prompt, max_tokens, raw, stop, sampling))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text; see `stopping`."""
        return end_ids(self.defaults, self.engine.decoder.eos_token_ids, self.tokenizer, self.template)

    def close(self) -> None:
        """Give back what the device holds."""
        self.engine.close()

    def __enter__(self) -> "TextModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        from hybrid.show.report import model_text

        return f"<TextModel {model_text(self.engine)}>"

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        decoder = self.engine.decoder
        largest = max(ids, default=0)
        if decoder.vocab_size and largest >= decoder.vocab_size:
            raise TokenizerError(
                f"{decoder.folder}: the tokenizer gives token {largest} but the model's vocabulary is "
                f"{decoder.vocab_size}; it is another model's tokenizer"
            )


def open_text_model(
    settings: RunSettings,
    template_name: str | None = None,
    may_guess_template: bool = False,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> TextModel:
    """Find, download if need be, and load the model of `settings`; see `load_chat_template` for the template.

    Raises OffloadError.
    """
    from hybrid.loading.open_engine import open_engine

    path = resolve_model(settings.model, settings.variant, allow_unused=settings.allow_unused, progress=progress)
    folder = find_model(path).folder
    expect_chat_template(folder, template_name)  # beside the tokenizer, which takes about as long
    tokenizer = load_tokenizer(folder)
    defaults = read_generation_defaults(folder)
    template = load_chat_template(folder, tokenizer, template_name, may_guess_template)
    engine = open_engine(replace(settings, model=path), progress, timeline)
    return TextModel(engine, tokenizer, defaults, template)


@checked
def load(
    model: str | Path = DEMO_MODEL,
    cuda: str | float | None = None,
    device: str = "auto",
    machine: str | None = None,
    context_tokens: int | None = None,
    threads: int | None = None,
    variant: str | None = None,
    kv_dtype: str | None = None,
    host_dtype: str | None = None,
    activations: str | None = None,
    ram: str | float | None = None,
    allow_unused: bool = False,
    progress: bool = True,
) -> TextModel:
    """Load a model for use from Python: a folder, an .onnx file, or a name on the Hugging Face hub.

        from hybrid import load

        with load("models/mistral-7b", cuda=6) as model:
            print(model.generate("Why is the sky blue?"))

    `cuda` is the VRAM budget: GiB, or text such as "800MiB", "80%" or "auto"; 0 keeps everything on the CPU, None
    lets the machine decide. `ram` is the most RAM to use, written likewise; None for most of what is there.
    `kv_dtype` is what keys and values are kept in, "fp16" or "fp32". `host_dtype` "int8" or "int4" quantises on load
    what the CPU multiplies; `activations` "int8" or "float" says what quantised weights multiply. `allow_unused` runs
    a model whose class or tensors are not all known; `model.engine.plan.warnings` then names them. `progress` shows on
    standard error, or below the cell of a notebook, how far downloading, loading and compiling are. Raises OffloadError
    for anything that can be put right.
    """
    settings = RunSettings(
        model=model,
        variant=variant,
        cuda=None if cuda is None else str(cuda),
        device=device,
        machine=machine,
        context_tokens=context_tokens,
        threads=threads,
        ram=None if ram is None else str(ram),
        kv_dtype=kv_dtype,
        host_dtype=host_dtype,
        activations=activations,
        allow_unused=allow_unused,
    )
    if not progress or sys.stderr is None:
        return open_text_model(settings)
    with ProgressLine(sys.stderr, "Loading") as shown:
        return open_text_model(settings, progress=shown)
