"""Make models of Llama architecture with random weights: a Hugging Face folder, and the same as GGUF.

    python -m bench.models --out DIR --shape tinyllama-1.1b --dtype fp16 [--gguf]

Speed and memory depend on the shapes, not on what the weights have learnt, so a benchmark needs no download.
The folder has config.json and safetensors, no tokenizer. Memory in use stays near one tensor.
"""

import argparse
import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_weights import DTYPES, SCALE, Dtype, Weights
from bench.shapes import SHAPES, Shape

MAX_SHARD_BYTES = 5_000_000_000  # as Hugging Face cuts large models


class ModelWriteError(Exception):
    """The model cannot be written; the message is one line."""


def config(shape: Shape, dtype: Dtype) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype.torch,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": SCALE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    }


def nbytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    """Bytes of one tensor in `dtype`."""
    return int(np.prod(shape)) * dtype.numpy.itemsize


def write_folder(
    out: Path,
    shape: Shape,
    weights: Weights,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write the Hugging Face folder; `advance` is told the bytes of each tensor written.

    config.json comes last, so a folder that has one is complete. Raises ModelWriteError when `out` is not empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ModelWriteError(f"{out} is not empty; remove it or choose another folder")
    shards = list(_shards(shape.tensors(), weights.dtype, max_shard_bytes))
    where: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        _write_safetensors(out / file, tensors, weights, advance)
        where |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(nbytes(s, weights.dtype) for s in shape.tensors().values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config(shape, weights.dtype), indent=2) + "\n")


def _shards(
    tensors: Mapping[str, tuple[int, ...]], dtype: Dtype, limit_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    used = 0
    for name, shape in tensors.items():
        size = nbytes(shape, dtype)
        if shard and used + size > limit_bytes:
            yield shard
            shard, used = {}, 0
        shard[name], used = shape, used + size
    yield shard


def _write_safetensors(
    path: Path, tensors: Mapping[str, tuple[int, ...]], weights: Weights, advance: Callable[[int], object]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + nbytes(shape, weights.dtype)
        header[name] = {"dtype": weights.dtype.safetensors, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers that map the file want the data at a multiple of 8
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            file.write(weights.tensor(name, shape).data)
            advance(nbytes(shape, weights.dtype))
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description="Make a random model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must be new or empty")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gguf", action="store_true", help="also write model.gguf (needs gguf)")
    options = parser.parse_args(arguments)
    shape, dtype, out = SHAPES[options.shape], DTYPES[options.dtype], options.out
    total = sum(nbytes(s, dtype) for s in shape.tensors().values()) * (2 if options.gguf else 1)
    from rich.console import Console  # late: others import this module where there is no rich
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    write_gguf: Callable[..., None] | None = None
    try:
        if options.gguf:  # first, so that a missing package is known before the long writing
            from bench.peers.gguf_file import write_gguf
        out.mkdir(parents=True, exist_ok=True)
        if total > (free := shutil.disk_usage(out).free):
            raise ModelWriteError(f"the model takes {total:,} bytes and {out} has {free:,} free")
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"{options.shape} {options.dtype}", total=total)

            def advance(size: int) -> None:
                progress.advance(task, size)

            weights = Weights(dtype, options.seed)
            write_folder(out, shape, weights, advance=advance)
            if write_gguf is not None:
                write_gguf(out / "model.gguf", options.shape, shape, weights, advance)
    except (ModelWriteError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
