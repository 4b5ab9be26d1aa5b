"""Samples stories from the demo model and reports how many of their sentences are in the grammar.

    python tools/demo_model/check.py hybrid/demo --sentences 200 --temperature 0.8

Needs numpy and sentencepiece only.  Exits with 1 when fewer than `--least` of the sentences parse.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import sentencepiece
from grammar import parses, parses_story, split_sentences
from reference import Reference


def sample(
    model: Reference,
    tokenizer: sentencepiece.SentencePieceProcessor,
    prompt: str,
    temperature: float,
    rng: np.random.Generator,
    limit: int = 240,
) -> str:
    """The prompt and its continuation, up to end-of-text or `limit` tokens; temperature 0 is greedy."""
    ids = [tokenizer.bos_id(), *tokenizer.encode(prompt)]
    model.reset()
    logits = model.step(ids)
    for _ in range(limit):
        if temperature > 0:
            weights = np.exp((logits - logits.max()) / temperature)
            token = int(rng.choice(len(weights), p=weights / weights.sum()))
        else:
            token = int(np.argmax(logits))
        if token == tokenizer.eos_id():
            break
        ids.append(token)
        logits = model.step([token])
    text: str = tokenizer.decode(ids[1:])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="measure the demo model against its grammar")
    parser.add_argument("model", type=Path, help="the model folder")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0, help="the first story's; each further story takes the next")
    parser.add_argument("--least", type=float, default=0.95, help="the share of sentences that must parse")
    parser.add_argument("--show", type=int, default=2, help="how many of the stories to print")
    args = parser.parse_args()

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.model / "tokenizer.model"))
    model = Reference(args.model, np.float64)
    stories: list[str] = []
    sentences: list[str] = []
    while len(sentences) < args.sentences:
        rng = np.random.default_rng(args.seed + len(stories))
        stories.append(sample(model, tokenizer, args.prompt, args.temperature, rng))
        sentences += split_sentences(stories[-1])
    sentences = sentences[: args.sentences]
    refused = [sentence for sentence in sentences if not parses(sentence)]
    share = 1 - len(refused) / len(sentences)

    for text in stories[: args.show]:
        print(text, end="\n\n")
    for sentence in refused:
        print("not in the grammar:", sentence)
    print(f"sentences in the grammar: {len(sentences) - len(refused)} of {len(sentences)} ({share:.1%})")
    whole = sum(parses_story(text) for text in stories)
    print(f"whole stories in the grammar, cast and plot: {whole} of {len(stories)}")
    return 0 if share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
