"""An engine with its tokenizer: text in, text out. What notebooks use, and what the command line is built on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hybrid.config import DEMO_MODEL, RunSettings
from hybrid.errors import TokenizerError
from hybrid.runtime.engine import Engine
from hybrid.text.generate import Generation, GenerationStats, generate
from hybrid.text.sampling import SamplingSettings
from hybrid.text.tokenizer import TextStream, Tokenizer, load_tokenizer


class TextModel:
    """A loaded model that completes text. Close it, or use it as a context manager, to give VRAM back."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.last_stats: GenerationStats | None = None

    def begin(self, prompt: str, sampling: SamplingSettings, max_tokens: int) -> tuple[Generation, TextStream]:
        """Start a completion: its token ids, and what turns them into text. The cache begins anew.

        Raises TokenizerError when the tokenizer is another model's.
        """
        prompt_ids = self.tokenizer.encode(prompt)
        self._check_vocabulary(prompt_ids)
        self.engine.trim(0)
        generation = generate(self.engine, prompt_ids, sampling, max_tokens, self.stop_ids)
        return generation, TextStream(self.tokenizer, after=prompt_ids)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Complete `prompt`, piece by piece. Temperature 0 is greedy; `last_stats` tells afterwards what it took."""
        sampling = SamplingSettings(temperature, top_k, top_p, seed)
        generation, text = self.begin(prompt, sampling, max_tokens)
        try:
            for token_id in generation:
                if piece := text.feed(token_id):
                    yield piece
            if rest := text.flush():
                yield rest
        finally:
            self.last_stats = generation.stats

    def generate(
        self,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Complete `prompt`; gives the whole completion, without the prompt."""
        return "".join(self.stream(prompt, max_tokens, temperature, top_k, top_p, seed))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text: the model's, or its tokenizer's when the model does not say."""
        if self.engine.decoder.eos_token_ids or self.tokenizer.eos_id is None:
            return self.engine.decoder.eos_token_ids
        return (self.tokenizer.eos_id,)

    def close(self) -> None:
        """Give back what the device holds."""
        self.engine.close()

    def __enter__(self) -> "TextModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        decoder = self.engine.decoder
        largest = max(ids, default=0)
        if decoder.vocab_size and largest >= decoder.vocab_size:
            raise TokenizerError(
                f"{decoder.folder}: the tokenizer gives token {largest} but the model's vocabulary is "
                f"{decoder.vocab_size}; it is another model's tokenizer"
            )


def load(
    model: str | Path = DEMO_MODEL,
    cuda: str | float | None = None,
    device: str = "auto",
    machine: str | None = None,
    context_tokens: int | None = None,
    threads: int | None = None,
) -> TextModel:
    """Load a model folder for use from Python.

        from hybrid import load

        with load("models/mistral-7b", cuda=6) as model:
            print(model.generate("Why is the sky blue?"))

    `cuda` is the VRAM budget: GiB, or text such as "800MiB", "80%" or "auto"; 0 keeps everything on the CPU, None
    lets the machine decide. Raises OffloadError for anything that can be put right.
    """
    from hybrid.runtime.loading import open_engine

    budget = None if cuda is None else str(cuda)
    settings = RunSettings(Path(model), budget, device, machine, context_tokens, threads)
    tokenizer = load_tokenizer(settings.model)
    return TextModel(open_engine(settings), tokenizer)
