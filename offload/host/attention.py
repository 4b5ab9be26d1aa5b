"""Attention on the CPU, on the threads of a `NumbaBackend`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.host.backend import NumbaBackend
from offload.host.kernels import attention as words
from offload.host.kernels import compiled, jobs, loops, softmax
from offload.host.kernels.attention import KEYS
from offload.spec.arrays import FloatArray
from offload.spec.attention import AttentionSpec
from offload.spec.linear import WeightFormat

_FORMATS = {np.dtype(np.float32): WeightFormat.FP32, np.dtype(np.float16): WeightFormat.FP16}
_BLOCK_ROWS = 128  # query rows of one block: enough for BLAS, few enough that a block's scores stay in L2
_DIRECT_ROWS = 48  # query rows up to which stored keys and values are multiplied directly; beyond, by BLAS
_SERIAL_ELEMENTS = 1 << 14  # elements that one thread reads or writes in less time than several need to wake up
_NO_WINDOW = 1 << 40


@dataclass(frozen=True, eq=False)
class AttentionArrays:
    """The arrays that one attention reads and writes, for M new tokens.

    `query` [M, num_heads * head_dim], `key` and `value` [M, num_kv_heads * head_dim]: float32, rows contiguous.
    `keys` and `values` are the cache, [num_kv_heads, capacity, head_dim], float32 or float16, C-contiguous. `cos` and
    `sin` are float32 [positions, rotary_dim / 2], C-contiguous, None without a rotary embedding. `last_position` is
    int32 [1]: the position of the last new token, read at every run. `output` is float32 [M, num_heads * head_dim],
    C-contiguous, and overlaps none of the others.
    """

    query: FloatArray
    key: FloatArray
    value: FloatArray
    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    cos: FloatArray | None
    sin: FloatArray | None
    last_position: npt.NDArray[np.int32]
    output: FloatArray


class HostAttention:
    """Makes calls that attend. Their scratch memory is shared, as they run one after the other."""

    def __init__(self, backend: NumbaBackend) -> None:
        self.threads = backend.threads
        self.sgemm = backend.sgemm
        self.team = backend.team
        self._scratch: dict[int, FloatArray] = {}

    def warm_up(self, cache_dtypes: Iterable[np.dtype[Any]]) -> None:
        """Compile what caches of these types need, about 3 s unless cached, rather than at first use."""
        for function in (softmax.soften, softmax.join):
            compiled.kernel_address(function)
        for dtype in cache_dtypes:
            weight_format = _FORMATS[dtype]
            for job in words.JOBS:
                compiled.kernel_address(job, weight_format)
            for rows in (1, _DIRECT_ROWS, _BLOCK_ROWS):
                _products(rows, weight_format)

    def bind(self, spec: AttentionSpec, arrays: AttentionArrays) -> "AttentionCall":
        """A call over arrays that stay where they are. Raises ValueError where they do not fit."""
        return AttentionCall(self, spec, arrays)

    def scratch(self, floats: int) -> FloatArray:
        """So many fp32 numbers from a cache line's border on; the same ones for everybody who wants as many."""
        if floats not in self._scratch:
            memory = np.empty(floats + 16, np.float32)
            skipped = -memory.ctypes.data % 64 // 4
            self._scratch[floats] = memory[skipped : skipped + floats]
        return self._scratch[floats]


class AttentionCall:
    """One attention over fixed arrays: a table of addresses that three jobs work through."""

    def __init__(self, attention: HostAttention, spec: AttentionSpec, arrays: AttentionArrays) -> None:
        """Raises ValueError for arrays that do not fit."""
        _check(spec, arrays)
        self._attention, self._spec, self._arrays = attention, spec, arrays
        self._tokens = len(arrays.query)
        self._capacity = arrays.keys.shape[1]
        self._positions = self._capacity if arrays.cos is None else min(self._capacity, len(arrays.cos))
        self._block_tokens = max(1, min(self._tokens, _BLOCK_ROWS * spec.num_kv_heads // spec.num_heads))
        self._items = spec.num_kv_heads * -(-self._tokens // self._block_tokens)
        weight_format = _FORMATS[arrays.keys.dtype]
        self._jobs = tuple(compiled.kernel_address(job, weight_format) for job in words.JOBS)
        self._task = self._table(weight_format)
        self._addresses = tuple(int(array.ctypes.data) for array in (self._task, arrays.keys, arrays.values))
        self._writers = self._threads_for(self._tokens * spec.num_kv_heads * spec.head_dim)

    def run(self) -> None:
        """Append the new tokens and attend. To be called from the thread that made the backend, and from no other.

        Raises ValueError, with nothing written, for a position outside the cache or the rotary tables.
        """
        last = int(self._arrays.last_position[0])
        past = last + 1 - self._tokens
        if not 0 <= past <= self._positions - self._tokens:
            raise ValueError(f"{self._tokens} tokens up to position {last} do not fit into {self._positions}")
        seen = min(last + 1, (self._spec.window or _NO_WINDOW) + self._tokens - 1)
        threads = self._threads_for(seen * self._spec.num_kv_heads * self._spec.head_dim)
        chunks = self._chunks(seen, threads)
        self._task[words.PAST], self._task[words.CHUNKS] = past, chunks
        pieces = self._writers, self._items * chunks, self._items if chunks > 1 else 0
        for job, count in zip(self._jobs, pieces, strict=True):
            if count:
                self._attention.team.run(job, self._addresses, threads, count)

    def _threads_for(self, elements: int) -> int:
        return 1 if elements <= _SERIAL_ELEMENTS else self._attention.threads

    def _chunks(self, seen: int, threads: int) -> int:
        """Count the chunks of a head's tokens, to have about two units of work for each thread."""
        if threads == 1 or self._items >= 2 * threads:
            return 1
        return max(1, min(-(-2 * threads // self._items), seen // KEYS))

    def _table(self, weight_format: WeightFormat) -> npt.NDArray[np.int64]:
        """The task of the jobs, without what changes from run to run."""
        spec, arrays, attention = self._spec, self._arrays, self._attention
        rows, d = self._block_tokens * spec.num_heads // spec.num_kv_heads, spec.head_dim
        scratch_floats = -(-(2 * rows * d + rows * (KEYS + 2) + KEYS * d) // 16) * 16
        partials = 4 * attention.threads * rows * (d + 2) if self._items < 2 * attention.threads else 0
        task = np.zeros(words.WORDS, np.int64)
        for word, array in (
            (words.QUERY, arrays.query),
            (words.KEY, arrays.key),
            (words.VALUE, arrays.value),
            (words.OUTPUT, arrays.output),
            (words.COS, arrays.cos),
            (words.SIN, arrays.sin),
            (words.SCRATCH, attention.scratch(attention.threads * scratch_floats)),
            (words.PARTIALS, attention.scratch(partials) if partials else None),
        ):
            task[word] = 0 if array is None else array.__array_interface__["data"][0]
        for word, number in (
            (words.QUERY_STRIDE, arrays.query.strides[0] // 4),
            (words.KEY_STRIDE, arrays.key.strides[0] // 4),
            (words.VALUE_STRIDE, arrays.value.strides[0] // 4),
            (words.TOKENS, self._tokens),
            (words.HEADS, spec.num_heads),
            (words.KV_HEADS, spec.num_kv_heads),
            (words.HEAD_DIM, d),
            (words.CAPACITY, arrays.keys.shape[1]),
            (words.WINDOW, spec.window or _NO_WINDOW),
            (words.SCALE, np.float32(spec.scale).view(np.int32)),
            (words.SOFTCAP, np.float32(spec.softcap).view(np.int32)),
            (words.ROTARY_DIM, spec.rotary_dim),
            (words.INTERLEAVED, spec.interleaved),
            (words.BLOCK_TOKENS, self._block_tokens),
            (words.SCRATCH_FLOATS, scratch_floats),
            (words.SGEMM, 0 if rows <= _DIRECT_ROWS else attention.sgemm),
        ):
            task[word] = number
        for word, function in ((words.SOFTEN, softmax.soften), (words.JOIN, softmax.join)):
            task[word] = compiled.kernel_address(function)
        for word, address in _products(rows, weight_format).items():
            task[word] = address
        return task


def _products(rows: int, weight_format: WeightFormat) -> dict[int, int]:
    """The functions that multiply by keys and by values, by the word of the task where they belong."""
    if rows <= _DIRECT_ROWS:
        score = loops.nk_one if rows == 1 else loops.nk_few
        mix = loops.kn_one if rows == 1 else loops.kn_few
        return {
            words.SCORE: compiled.kernel_address(score, weight_format),
            words.MIX: compiled.kernel_address(mix, weight_format),
        }
    is_fp32 = weight_format is WeightFormat.FP32
    return {
        words.GEMM: compiled.kernel_address(jobs.gemm),
        words.EXPAND: 0 if is_fp32 else compiled.kernel_address(loops.expand, weight_format),
    }


def _check(spec: AttentionSpec, arrays: AttentionArrays) -> None:
    if spec.num_heads % spec.num_kv_heads or spec.rotary_dim % 2 or not 0 <= spec.rotary_dim <= spec.head_dim:
        raise ValueError(f"an attention cannot be {spec}")
    tokens, kv_width = len(arrays.query), spec.num_kv_heads * spec.head_dim
    if not tokens:
        raise ValueError("there are no tokens to attend for")
    widths = {"query": spec.num_heads * spec.head_dim, "key": kv_width, "value": kv_width}
    for name, width in widths.items():
        _check_array(name, getattr(arrays, name), (np.float32,), (tokens, width), whole=False)
    _check_array("output", arrays.output, (np.float32,), (tokens, widths["query"]))
    shape = (spec.num_kv_heads, arrays.keys.shape[1] if arrays.keys.ndim == 3 else 0, spec.head_dim)
    for name in ("keys", "values"):
        _check_array(name, getattr(arrays, name), (arrays.keys.dtype,), shape)
    if arrays.keys.dtype not in _FORMATS:
        raise ValueError(f"a cache is float32 or float16, not {arrays.keys.dtype}")
    if spec.rotary_dim:
        if arrays.cos is None or arrays.sin is None:
            raise ValueError("a rotary embedding needs tables of cosines and sines")
        for name, table in (("cos", arrays.cos), ("sin", arrays.sin)):
            _check_array(name, table, (np.float32,), (len(arrays.cos), spec.rotary_dim // 2))
    _check_array("last_position", arrays.last_position, (np.int32,), (1,))


def _check_array(
    name: str, array: npt.NDArray[Any], dtypes: tuple[Any, ...], shape: tuple[int, ...], whole: bool = True
) -> None:
    contiguous = array.flags.c_contiguous if whole else array.ndim == 2 and array.strides[1] == array.itemsize
    if array.dtype not in dtypes or array.shape != shape or not contiguous:
        raise ValueError(f"{name} must be contiguous {dtypes[0]} {list(shape)}, not {array.dtype}{list(array.shape)}")
