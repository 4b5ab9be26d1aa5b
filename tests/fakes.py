"""Stand-ins for tests above the engine: one that recites, a small plan, a tokenizer trained on the spot."""

import io
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hybrid.engine.token_ids import common_prefix
from hybrid.errors import ContextFullError
from hybrid.graph.decoder import Decoder
from hybrid.graph.graph import Graph
from hybrid.loading.settings import RunSettings
from hybrid.machine.memory import MemoryUse
from hybrid.progress import Progress
from offload.plan.plan import LinearPlacement, Plan, Prediction, Prefill, StreamRing
from offload.spec.linear import ColumnRange, Layout, LinearSpec, WeightFormat

VOCAB = 512
BOS, EOS = 1, 2


def placement(layer: str, kind: str, resident: int, streamed: int, columns: int = 100) -> LinearPlacement:
    """A Linear of 100 columns, 64 bytes each."""
    linear = LinearSpec(
        f"{layer}.{kind}", 32, columns, WeightFormat.FP16, Layout.NK, 64 * columns, kind, layer, f"{layer}.g"
    )
    there = resident + streamed
    ranges = (ColumnRange(0, resident), ColumnRange(resident, there), ColumnRange(there, columns))
    return LinearPlacement(linear, *ranges, reason="because", host_format=linear.format)


def small_plan(budget_bytes: int = 8 * 2**20) -> Plan:
    """Two layers placed alike, one that is not, and a head on the host."""
    shares = [("0", 60, 10), ("1", 65, 10), ("2", 0, 0)]
    placements = [placement(layer, kind, r, s) for layer, r, s in shares for kind in ("q_proj", "down_proj")]
    return Plan(
        model="fake",
        machine={"name": "bench-top", "estimated": True},
        budget_bytes=budget_bytes,
        chunk_tokens=16,
        prefill_tokens=0,
        ring=StreamRing(2, 1024),
        vram_bytes={"context": 4 * 2**20, "resident weights": 2**20},
        ram_bytes={"host weights": 3 * 2**20, "KV cache": 2**20},
        placements=(*placements, placement("", "lm_head", 0, 0)),
        predicted=Prediction(0.002, 500.0, "host", 1024, {"host": 0.0015, "islands": 0.0005}),
        at_depths=(Prediction(0.002, 500.0, "host", 1024, {"host": 0.0015, "islands": 0.0005}),),
        prefill=Prefill(16, 0.008, 2000.0, "bus"),
        notes=("nothing else fits",),
    )


T = TypeVar("T")


class Unshared:
    """An engine that one thread uses: nothing is handed over, and nothing runs ahead."""

    cache: list[int]  # what it holds
    context_may_grow = True

    def ahead(self, steps: Generator[T, None, None]) -> Generator[T, None, None]:
        return steps

    def alone(self, function: Callable[[], T]) -> T:
        return function()

    def held(self, token_ids: Sequence[int], /) -> int:
        return common_prefix(self.cache, token_ids)

    @property
    def position(self) -> int:
        return len(self.cache)


class FakeEngine(Unshared):
    """Says the tokens of `script` one after another, whatever it is fed; then the end token for ever."""

    def __init__(
        self, script: Sequence[int], context_tokens: int = 64, on_step: Callable[[int], None] | None = None
    ) -> None:
        self.script = list(script)
        self.context_tokens = context_tokens
        self.on_step = on_step or (lambda step: None)
        self.cache: list[int] = []
        self.step = 0
        self.on_read: Callable[[int, int], None] = lambda read, tokens: None
        self.fed: list[int] = []
        self.closed = False
        self.plan = small_plan()
        self.target = "a bench top"
        self.simulated = False
        self.monitor = None
        graph = Graph("fake", (), (), (), {}, {})
        self.decoder = Decoder("fake", Path(), graph, "llama", VOCAB, 0, (EOS,), BOS, (), False)

    def prefill(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        if self.position + len(ids) > self.context_tokens:
            raise ContextFullError(f"{len(ids)} tokens do not fit into {self.context_tokens}")
        self.cache += ids
        self.step = 0
        self.on_read(len(ids), len(ids))
        return self._logits()

    def decode(self, token_id: int) -> npt.NDArray[np.float32]:
        assert self.position < self.context_tokens
        self.cache.append(token_id)
        self.fed.append(token_id)
        self.step += 1
        self.on_step(self.step)
        return self._logits()

    def trim(self, length: int) -> None:
        self.step = max(0, self.step - (self.position - length))
        del self.cache[length:]

    def memory(self) -> MemoryUse:
        return {
            "vram_peak_bytes": 6 * 2**20,
            "vram_peak_source": "process",
            "vram_budget_bytes": 8 * 2**20,
            "ram_peak_bytes": 3 * 2**30,
        }

    def close(self) -> None:
        self.closed = True

    def _logits(self) -> npt.NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.script[self.step] if self.step < len(self.script) else EOS] = 5.0
        return logits


class RecordedProgress(Progress):
    """Keep what it is told: the stages with their bytes, and the bytes of every part."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.parts: list[int] = []

    def on_stage(self, label: str, total_bytes: int) -> None:
        self.stages.append((label, total_bytes))

    def on_bytes(self, nbytes: int) -> None:
        self.parts.append(nbytes)


def engine_modules(
    engine: FakeEngine, failure: BaseException | None = None, settings_seen: list[RunSettings] | None = None
) -> dict[str, ModuleType]:
    """`hybrid.loading.open_engine` and `.planning`, for sys.modules, with this engine behind them."""

    def remember(settings: RunSettings) -> None:
        if settings_seen is not None:
            settings_seen.append(settings)
        if failure is not None:
            raise failure

    def open_engine(settings: RunSettings, progress: Progress, timeline: Any) -> FakeEngine:
        remember(settings)
        progress.on_stage("Loading weights", 2**20)
        progress.on_bytes(2**20)
        return engine

    def make_plan(settings: RunSettings) -> Plan:
        remember(settings)
        return engine.plan

    opener, planner = ModuleType("hybrid.loading.open_engine"), ModuleType("hybrid.loading.planning")
    opener.open_engine, planner.make_plan = open_engine, make_plan  # type: ignore[attr-defined]
    return {module.__name__: module for module in (opener, planner)}


def train_tokenizer(folder: Path) -> Path:
    """A model folder with a byte-pair tokenizer: 3 control pieces, 256 bytes, a few dozen pieces of text."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["once upon a time there was a cat", "the cat sat on the mat"] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text("{}")
    return folder


TOKENIZER_TEXTS = ["once upon a time there was a cat", "the cat sat on the mat, naïvely — 猫は座った"] * 3


def train_json_tokenizer(folder: Path, byte_level: bool = True, begins: bool = False) -> Path:
    """A model folder with a small tokenizer.json: byte-level as GPT-2's, or with bytes as a fallback as Llama 2's.

    Ids 0 to 2 are <unk>, <s>, </s>; <|im_start|> and <|im_end|> are added at the end. `begins`: texts begin with <s>.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>"]
    byte_pieces = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=not byte_level))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special + byte_pieces, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # the byte pieces are plain tokens
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def main(folder: str, text: str, endless: bool = False, context_tokens: int = 64) -> None:
    """For tests that need a process: the `hybrid` command around an engine that says `text`."""
    from hybrid.cli import main as cli
    from hybrid.text.open_tokenizer import load_tokenizer

    script = load_tokenizer(Path(folder)).encode(text, add_bos=False)
    engine = FakeEngine(script * 10_000 if endless else script, 10**6 if endless else context_tokens)
    engine.on_step = lambda step: time.sleep(0.001)  # slow enough to be interrupted in the middle
    sys.modules.update(engine_modules(engine))
    sys.exit(cli.main())
