"""Attention on the CPU, as jobs for the threads of a team: new keys and values into the cache, attend, merge.

Keys are taken block by block; where there are too few heads for the threads, the tokens of a head are cut into chunks
whose results are merged (flash-decoding). All query heads that share a key/value head are rows of one product, so
that keys and values are read once. The products are those of `loops` and BLAS, the softmax that of
`softmax`, called by address.

A task is a table of int64 words.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int64

from offload.host.kernels.intrinsics import F32, I32, I64, Pointer, at, call, fill, helper, intrinsic, load, store, take

KEYS = 256  # keys of one block: their scores stay in L1 at decode, their fp32 panels in L2 at prefill

# Words of a task.
QUERY, QUERY_STRIDE, KEY, KEY_STRIDE, VALUE, VALUE_STRIDE, OUTPUT, TOKENS, PAST = range(9)
HEADS, KV_HEADS, HEAD_DIM, CAPACITY, WINDOW, SCALE, SOFTCAP = range(9, 16)
COS, SIN, ROTARY_DIM, INTERLEAVED = range(16, 20)
BLOCK_TOKENS, CHUNKS, SCRATCH, SCRATCH_FLOATS, PARTIALS = range(20, 25)
SCORE, MIX, EXPAND, GEMM, SGEMM, SOFTEN, JOIN, WORDS = range(25, 33)

LOWEST = np.float32(-np.inf)


@intrinsic
def floats(typing: Any, number: Any) -> Any:
    """The fp32 numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], F32.as_pointer())

    return Pointer(float32)(int64), generate


@intrinsic
def address(typing: Any, pointer: Any) -> Any:
    """The address in a pointer."""
    return int64(pointer), lambda context, builder, signature, args: builder.ptrtoint(args[0], I64)


@intrinsic
def as_float(typing: Any, word: Any) -> Any:
    """The fp32 number whose bits are the lower half of a word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return float32(int64), generate


@helper
def rotate(task: Any, x: Any, y: Any, position: int, scale: Any) -> None:
    """y = one head of x, turned to `position` and scaled: pairs (i, i + half), or neighbours when interleaved."""
    turned = task[ROTARY_DIM]
    half = turned // 2
    cos, sin = at(floats(task[COS]), position * half), at(floats(task[SIN]), position * half)
    if task[INTERLEAVED]:
        for i in range(half):
            a, b, c, s = load(x, 2 * i), load(x, 2 * i + 1), load(cos, i), load(sin, i)
            store(y, 2 * i, (a * c - b * s) * scale)
            store(y, 2 * i + 1, (b * c + a * s) * scale)
    else:
        for i in range(half):
            store(y, i, (load(x, i) * load(cos, i) - load(x, i + half) * load(sin, i)) * scale)
        for i in range(half):
            store(y, i + half, (load(x, i + half) * load(cos, i) + load(x, i) * load(sin, i)) * scale)
    for i in range(turned, task[HEAD_DIM]):
        store(y, i, load(x, i) * scale)


@helper
def append_token(task: Any, keys: Any, values: Any, token: int) -> None:
    """The key of a new token, turned, and its value into the cache."""
    d, position = task[HEAD_DIM], task[PAST] + token
    k, v = floats(task[KEY] + 4 * token * task[KEY_STRIDE]), floats(task[VALUE] + 4 * token * task[VALUE_STRIDE])
    for head in range(task[KV_HEADS]):
        place = (head * task[CAPACITY] + position) * d
        rotate(task, at(k, head * d), at(keys, place), position, float32(1))
        cached, value = at(values, place), at(v, head * d)
        for i in range(d):
            store(cached, i, load(value, i))


def append(task: Any, keys: Any, values: Any, thread: int, pieces: Any) -> None:
    """New tokens into the cache, some a piece."""
    tokens, piece = task[TOKENS], take(pieces, thread)
    while piece < pieces[0]:
        for token in range(tokens * piece // pieces[0], tokens * (piece + 1) // pieces[0]):
            append_token(task, keys, values, token)
        piece = take(pieces, thread)


@helper
def score(task: Any, keys: Any, count: int, queries: Any, rows: int, scores: Any, panel: Any) -> None:
    """scores[rows, count] = queries[rows, d] @ keys[count, d].T."""
    d = task[HEAD_DIM]
    if task[SGEMM] == 0:
        call(task[SCORE], (address(keys), d, int64(0), count, address(queries), d, rows, address(scores), count))
        return
    block = address(keys)
    if task[EXPAND]:
        call(task[EXPAND], (block, d, count, d, address(panel)))
        block = address(panel)
    sizes = (task[SGEMM], int64(1), count, rows, d, block, d, address(queries), d, int64(0), address(scores), count)
    call(task[GEMM], sizes)


@helper
def mix(task: Any, values: Any, count: int, weights: Any, rows: int, total: Any, product: Any) -> None:
    """total[rows, d] += weights[rows, count] @ values[count, d]."""
    d = task[HEAD_DIM]
    if task[SGEMM] == 0:
        call(task[MIX], (address(values), d, int64(0), d, address(weights), count, rows, address(product), d))
        for i in range(rows * d):
            store(total, i, load(total, i) + load(product, i))
        return
    block = address(values)
    if task[EXPAND]:
        call(task[EXPAND], (block, d, count, d, address(product)))
        block = address(product)
    sizes = (task[SGEMM], int64(0), d, rows, count, block, d, address(weights), count, int64(1), address(total), d)
    call(task[GEMM], sizes)


@helper
def give(task: Any, head: int, first: int, r: int, line: Any, total: Any) -> None:
    """Write row r of a block that begins at query `first`: `line` / `total`."""
    d, group = task[HEAD_DIM], task[HEADS] // task[KV_HEADS]
    token, member = first + r // group, r % group
    target = at(floats(task[OUTPUT]), (token * task[HEADS] + head * group + member) * d)
    share = float32(1) / total
    for i in range(d):
        store(target, i, load(line, i) * share)


def attend(task: Any, keys: Any, values: Any, thread: int, pieces: Any) -> None:
    """Attend; a piece is a key/value head, a block of queries, and a chunk of the keys they see.

    With one chunk a piece's result is the output; else it is a partial one: maxima, sums and totals for `merge`.
    """
    d, kv_heads, chunks = task[HEAD_DIM], task[KV_HEADS], task[CHUNKS]
    group = task[HEADS] // kv_heads
    blocks = (task[TOKENS] + task[BLOCK_TOKENS] - 1) // task[BLOCK_TOKENS]
    most_rows = task[BLOCK_TOKENS] * group
    queries = floats(task[SCRATCH] + 4 * thread * task[SCRATCH_FLOATS])
    total = at(queries, most_rows * d)
    scores = at(total, most_rows * d)
    states = at(scores, most_rows * KEYS)
    panel = at(states, 2 * most_rows)  # fp32 keys or values of one block, or the product of one
    unit = take(pieces, thread)
    while unit < pieces[0]:
        chunk, head = unit % chunks, unit // chunks % kv_heads
        first = (blocks - 1 - unit // (chunks * kv_heads)) * task[BLOCK_TOKENS]  # the last see most: they go first
        tokens = min(task[BLOCK_TOKENS], task[TOKENS] - first)
        rows = tokens * group
        for r in range(rows):
            token = first + r // group
            x = floats(task[QUERY] + 4 * (token * task[QUERY_STRIDE] + (head * group + r % group) * d))
            rotate(task, x, at(queries, r * d), task[PAST] + token, as_float(task[SCALE]))
        fill(total, 0, rows * d, float32(0))
        fill(states, 0, rows, LOWEST)
        fill(states, rows, 2 * rows, float32(0))
        begin = max(task[PAST] + first + 1 - task[WINDOW], 0)
        length = task[PAST] + first + tokens - begin
        start, stop = begin + length * chunk // chunks, begin + length * (chunk + 1) // chunks
        for key in range(start, stop, KEYS):
            count, place = min(KEYS, stop - key), (head * task[CAPACITY] + key) * d
            score(task, at(keys, place), count, queries, rows, scores, panel)
            seen, softcap = task[PAST] + first + 1 - key, address(at(task, SOFTCAP))
            sizes = (
                address(scores),
                count,
                seen,
                task[WINDOW],
                rows,
                group,
                softcap,
                address(total),
                d,
                address(states),
            )
            call(task[SOFTEN], sizes)
            mix(task, at(values, place), count, scores, rows, total, panel)
        if chunks == 1:
            for r in range(rows):
                give(task, head, first, r, at(total, r * d), load(states, rows + r))
        else:
            partial = at(floats(task[PARTIALS]), unit * most_rows * (d + 2))
            for i in range(2 * rows):
                store(partial, i, load(states, i))
            for i in range(rows * d):
                store(partial, 2 * rows + i, load(total, i))
        unit = take(pieces, thread)


def merge(task: Any, keys: Any, values: Any, thread: int, pieces: Any) -> None:
    """Put chunks together; a piece is a key/value head and a block of queries."""
    d, kv_heads, chunks = task[HEAD_DIM], task[KV_HEADS], task[CHUNKS]
    group = task[HEADS] // kv_heads
    blocks = (task[TOKENS] + task[BLOCK_TOKENS] - 1) // task[BLOCK_TOKENS]
    distance = task[BLOCK_TOKENS] * group * (d + 2)
    total = floats(task[SCRATCH] + 4 * thread * task[SCRATCH_FLOATS])
    item = take(pieces, thread)
    while item < pieces[0]:
        first = (blocks - 1 - item // kv_heads) * task[BLOCK_TOKENS]
        rows = min(task[BLOCK_TOKENS], task[TOKENS] - first) * group
        partials = at(floats(task[PARTIALS]), item * chunks * distance)
        for r in range(rows):
            call(task[JOIN], (address(partials), chunks, distance, rows, r, d, address(total)))
            give(task, item % kv_heads, first, r, total, load(total, d))
        item = take(pieces, thread)


JOBS = (append, attend, merge)
_JOB = (Pointer(int64), None, None, int64, Pointer(int64))
# What each function takes; None stands for the pointers to the cache, which carry its format.
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    append: _JOB,
    attend: _JOB,
    merge: _JOB,
}
