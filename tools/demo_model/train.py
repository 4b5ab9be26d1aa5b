"""Makes the demo model from nothing: stories from the grammar, a tokenizer, a trained Llama, a model folder.

    python tools/demo_model/train.py --out hybrid/demo --golden tests/data/demo_golden.json

Needs torch, numpy and sentencepiece, and about 15 minutes on two idle CPU cores.
`--start` goes on from an earlier folder with new stories.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from grammar import split_sentences, story
from llama import Llama, Shape
from reference import Reference
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

PROMPT = "Once upon a time"
BOS, EOS = 1, 2
ROW = 256  # tokens a training row; a row holds two or three stories


def documents(count: int, seed: int) -> list[str]:
    """`count` texts; one in three starts at a later sentence of its story, so that any can be a prompt."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = story(rng)
        if rng.random() < 1 / 3:
            sentences = split_sentences(text)
            text = " ".join(sentences[rng.randrange(1, len(sentences)) :])
        texts.append(text)
    return texts


def train_tokenizer(texts: list[str], vocab_size: int) -> bytes:
    """A sentencepiece BPE model with Llama's settings: byte fallback, no normalisation, digits split."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,  # threads make the merges, and so the model, differ from run to run
        minloglevel=1,
    )
    return model.getvalue()


def pack(tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> torch.Tensor:
    """Rows [n, ROW + 1] of whole texts, each as bos, text, eos; every row starts at the start of a text.

    What does not fit at the end of a row is cut off, and the next row starts with the next text.
    """
    rows, row = [], np.empty(0, np.int64)
    for ids in tokenizer.encode(texts):
        row = np.concatenate((row, [BOS, *ids, EOS]))
        if len(row) > ROW:
            rows.append(row[: ROW + 1])
            row = row[:0]
    return torch.from_numpy(np.stack(rows))


def train(model: Llama, rows: torch.Tensor, batch: int, peak_rate: float) -> None:
    """One pass over the rows [n, ROW + 1] in the given order: AdamW, short warm-up, cosine to zero."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95))
    steps, began = len(rows) // batch, time.monotonic()
    for step in range(steps):
        rate = peak_rate * min((step + 1) / 100, (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = rows[step * batch : (step + 1) * batch]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True)


def save(model: Llama, tokenizer: bytes, folder: Path) -> None:
    """The model folder: weights as float16, the configuration, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(to_safetensors(weights, metadata={"format": "pt"}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": EOS}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)


def write_golden(folder: Path, path: Path, limit: int = 120) -> None:
    """What a runtime must say: greedy ids up to `limit` or eos, in float64 on the stored weights."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = Reference(folder, np.float64)
    prompt_ids = [BOS, *tokenizer.encode(PROMPT)]
    logits = first = model.step(prompt_ids)
    greedy_ids: list[int] = []
    margin = math.inf
    while len(greedy_ids) < limit and greedy_ids[-1:] != [EOS]:
        second, best = np.sort(logits)[-2:]
        margin = min(margin, float(best - second))
        greedy_ids.append(int(np.argmax(logits)))
        logits = model.step(greedy_ids[-1:])
    golden = {
        "prompt": PROMPT,
        "prompt_ids": prompt_ids,
        "greedy_ids": greedy_ids,
        "greedy_text": tokenizer.decode([i for i in greedy_ids if i != EOS]),
        # The closest call among the greedy choices, in logits: a runtime with a larger error may differ.
        "smallest_margin": margin,
        "first_step_logits": first.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n")
    print(PROMPT + golden["greedy_text"], f"(smallest margin {margin:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo model")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--golden", type=Path, help="the file of expected outputs to write, for the tests")
    parser.add_argument("--start", type=Path, help="a model folder to go on from, with its tokenizer")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--stories", type=int, default=76_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    shape = Shape()
    texts = documents(args.stories, args.seed)
    if args.start:
        tokenizer = (args.start / "tokenizer.model").read_bytes()
    else:
        tokenizer = train_tokenizer(texts[:20_000], shape.vocab_size)
    rows = pack(sentencepiece.SentencePieceProcessor(model_proto=tokenizer), texts)
    model = Llama(shape)
    if args.start:
        model.load_state_dict(load_file(args.start / "model.safetensors"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(rows)} rows of {ROW} tokens, {parameters / 1e6:.2f} million parameters", flush=True)
    train(model, rows, batch=8, peak_rate=args.rate)
    save(model, tokenizer, args.out)
    if args.golden:
        write_golden(args.out, args.golden)


if __name__ == "__main__":
    main()
