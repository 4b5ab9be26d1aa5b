"""Attention on the CPU against a plain float64 one: heads, sizes, windows, positions, rotations, cache types."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from offload.host.attention import AttentionArrays, HostAttention
from offload.host.backend import NumbaBackend
from offload.spec.attention import AttentionSpec

Array = npt.NDArray[Any]
UNTOUCHED = np.float32(-12345)


@pytest.fixture(scope="module")
def attention() -> HostAttention:
    made = HostAttention(NumbaBackend(2))
    made.warm_up([np.dtype(np.float32), np.dtype(np.float16)])
    return made


@dataclass
class Sequence:
    """A cache that our attention and a float64 one append to, step by step."""

    spec: AttentionSpec
    cache: Array  # keys and values, (2, kv heads, capacity, d)
    exact: Array  # the same in float64, rounded as the cache is
    length: int = 0

    @classmethod
    def of(cls, spec: AttentionSpec, capacity: int, dtype: Any = np.float32) -> "Sequence":
        cache = np.full((2, spec.num_kv_heads, capacity, spec.head_dim), np.nan, dtype)
        return cls(spec, cache, cache.astype(np.float64))

    def tables(self) -> tuple[Array, Array]:
        half = self.spec.rotary_dim // 2
        angles = np.arange(self.cache.shape[2])[:, None] * 100.0 ** (-np.arange(half) / max(half, 1))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def step(self, attention: HostAttention, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        """Attend with our kernel and in float64, (tokens, heads * d) each."""
        tokens, (cos, sin) = len(q), self.tables()
        output = np.full(q.shape, UNTOUCHED)
        rotary = (cos, sin) if self.spec.rotary_dim else (None, None)
        last = np.array([self.length + tokens - 1], np.int32)
        attention.bind(self.spec, AttentionArrays(q, k, v, *self.cache, *rotary, last, output)).run()
        expected = self._reference(q, k, v)
        self.length += tokens
        return output, expected

    def _reference(self, q: Array, k: Array, v: Array) -> Array:
        spec, past, tokens = self.spec, self.length, len(q)
        turned_q, turned_k = self._turned(q, spec.num_heads), self._turned(k, spec.num_kv_heads)
        new = np.stack([turned_k, v.reshape(tokens, -1, spec.head_dim).astype(np.float64)])
        stored = new.astype(np.float32).astype(self.cache.dtype).astype(np.float64)
        self.exact[:, :, past : past + tokens] = stored.transpose(0, 2, 1, 3)
        attended = np.empty((tokens, spec.num_heads, spec.head_dim))
        for token in range(tokens):
            position = past + token
            first = 0 if spec.window is None else max(0, position + 1 - spec.window)
            keys, values = np.repeat(self.exact[:, :, first : position + 1], spec.num_heads // spec.num_kv_heads, 1)
            scores = np.einsum("hd,htd->ht", turned_q[token], keys) * spec.scale
            if spec.softcap:
                scores = spec.softcap * np.tanh(scores / spec.softcap)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[token] = np.einsum("ht,htd->hd", weights / weights.sum(-1, keepdims=True), values)
        return attended.reshape(tokens, -1)

    def _turned(self, x: Array, heads: int) -> Array:
        spec, tokens = self.spec, len(x)
        x = x.astype(np.float64).reshape(tokens, heads, spec.head_dim)
        cos, sin = (table[self.length : self.length + tokens, None].astype(np.float64) for table in self.tables())
        half = spec.rotary_dim // 2
        if spec.interleaved:
            first, second = slice(0, spec.rotary_dim, 2), slice(1, spec.rotary_dim, 2)
        else:
            first, second = slice(0, half), slice(half, spec.rotary_dim)
        turned = x.copy()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
        return turned


def spec_of(heads: int = 8, kv_heads: int = 2, d: int = 16, **changes: Any) -> AttentionSpec:
    return AttentionSpec(heads, kv_heads, d, **{"scale": d**-0.5, **changes})


def new_tokens(spec: AttentionSpec, tokens: int, seed: int = 0) -> tuple[Array, Array, Array]:
    random = np.random.default_rng([seed, tokens])
    widths = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    q, k, v = (random.standard_normal((tokens, heads * spec.head_dim), np.float32) for heads in widths)
    return q, k, v


def check_steps(attention: HostAttention, spec: AttentionSpec, steps: tuple[int, ...], dtype: Any = np.float32) -> None:
    """Steps of so many tokens each. A weight is off by its score's error, 1e-5 at most; in fp16 a turned key may be
    rounded the other way, 2**-11 of it."""
    sequence = Sequence.of(spec, sum(steps) + 2, dtype)
    bound = 2e-5 if dtype == np.float32 else 2e-3
    for number, tokens in enumerate(steps):
        output, expected = sequence.step(attention, *new_tokens(spec, tokens, number))
        assert np.abs(output - expected).max() < bound, (spec, steps, number)
    assert np.isnan(sequence.cache[:, :, sequence.length :]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("d", [16, 24, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (8, 8), (32, 4), (71, 1)])
def test_heads_of_any_number_and_size(
    attention: HostAttention, heads: int, kv_heads: int, d: int, dtype: type[Any]
) -> None:
    check_steps(attention, spec_of(heads, kv_heads, d, rotary_dim=d), (1, 3, 1, 40, 1), dtype)


@pytest.mark.parametrize("window", [None, 1, 5, 64, 300])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33, 70])
def test_windows_and_positions(attention: HostAttention, tokens: int, window: int | None) -> None:
    check_steps(attention, spec_of(window=window, rotary_dim=16), (tokens, 230, tokens, 1, 300, tokens))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 2, 10, 24, 64])
def test_rotations(attention: HostAttention, rotary_dim: int, interleaved: bool) -> None:
    check_steps(attention, spec_of(d=64, rotary_dim=rotary_dim, interleaved=interleaved), (5, 1, 20, 1))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_bent_scores(attention: HostAttention, softcap: float) -> None:
    check_steps(attention, spec_of(softcap=softcap, scale=2.0), (300, 1, 4))


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("tokens", [1, 3])
def test_chunks_of_few_heads_over_many_threads(threads: int, tokens: int) -> None:
    spec = spec_of(4, 1, 64, rotary_dim=64)
    check_steps(HostAttention(NumbaBackend(threads)), spec, (600, tokens, 300, tokens))
    windowed = replace(spec, window=560)
    check_steps(HostAttention(NumbaBackend(threads)), windowed, (600, tokens, 300, tokens))


def test_trimmed_tokens_are_overwritten(attention: HostAttention) -> None:
    spec = spec_of(rotary_dim=16)
    sequence = Sequence.of(spec, 40)
    sequence.step(attention, *new_tokens(spec, 20))
    sequence.step(attention, *new_tokens(spec, 15, seed=1))
    for length, tokens in ((10, 4), (0, 1), (1, 30)):
        sequence.length = length
        output, expected = sequence.step(attention, *new_tokens(spec, tokens, seed=2))
        assert np.abs(output - expected).max() < 2e-5


@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_what_is_behind_the_window_is_not_read(attention: HostAttention, tokens: int) -> None:
    """NaN there would show, even at weight 0."""
    spec = spec_of(window=50)
    sequence = Sequence.of(spec, 800)
    sequence.step(attention, *new_tokens(spec, 700))
    sequence.cache[:, :, : 700 + 1 - 50] = np.nan
    output, expected = sequence.step(attention, *new_tokens(spec, tokens))
    assert np.abs(output - expected).max() < 2e-5


@pytest.mark.parametrize("tokens", [1, 40])
def test_nan_and_infinity_keep_their_meaning(attention: HostAttention, tokens: int) -> None:
    spec = spec_of(2, 2, 16)
    sequence = Sequence.of(spec, 400)
    sequence.step(attention, *new_tokens(spec, 300))
    q, k, v = new_tokens(spec, tokens)
    q[-1, 3] = np.nan  # the first head of the last token
    sequence.exact[0, 1, 7] = sequence.cache[0, 1, 7] = 0
    sequence.exact[0, 1, 7, 2] = sequence.cache[0, 1, 7, 2] = -np.inf  # weighs nothing, or all there is
    q[:, 16 + 2] = np.abs(q[:, 16 + 2])
    with np.errstate(invalid="ignore"):
        output, expected = sequence.step(attention, q, k, v)
    assert np.isnan(output[-1, :16]).all()
    assert np.isfinite(output[:-1]).all()
    assert np.isfinite(output[-1, 16:]).all()
    assert np.abs(output - expected)[:, 16:].max() < 2e-5


def test_packed_rows_are_read_where_they_are(attention: HostAttention) -> None:
    spec = spec_of()
    packed = np.concatenate(new_tokens(spec, 9), axis=1)
    views = np.split(packed, [8 * 16, 10 * 16], axis=1)
    output, expected = Sequence.of(spec, 9).step(attention, *views)
    assert np.abs(output - expected).max() < 2e-5


def test_a_call_follows_the_position(attention: HostAttention) -> None:
    """The same call at every step, as decode makes it."""
    spec = spec_of(rotary_dim=16)
    one, other = Sequence.of(spec, 30), Sequence.of(spec, 30)
    q, k, v = new_tokens(spec, 1)
    last, output = np.zeros(1, np.int32), np.empty_like(q)
    call = attention.bind(spec, AttentionArrays(q, k, v, *one.cache, *one.tables(), last, output))
    for position in range(30):
        q += np.float32(0.1)
        last[0] = position
        call.run()
        np.testing.assert_array_equal(output, other.step(attention, q, k, v)[0])
    np.testing.assert_array_equal(one.cache, other.cache)


def test_refuses_what_does_not_fit(attention: HostAttention) -> None:
    spec = spec_of(rotary_dim=16)
    sequence = Sequence.of(spec, 10)
    q, k, v = new_tokens(spec, 4)
    last, (cos, sin) = np.array([3], np.int32), sequence.tables()
    good = AttentionArrays(q, k, v, *sequence.cache, cos, sin, last, np.empty_like(q))
    attention.bind(spec, good).run()
    changes: tuple[dict[str, Any], ...] = (
        {"query": q[:, :-1]},
        {"key": k[:3]},
        {"value": v.astype(np.float64)},
        {"query": np.asfortranarray(q)},
        {"keys": sequence.cache[0][:, ::2]},
        {"values": sequence.cache[1].astype(np.float16)},
        {"cos": None},
        {"sin": sin[:5]},
        {"last_position": np.array([3])},
        {"output": np.empty((4, 16), np.float32)},
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"must be contiguous|needs tables"):
            attention.bind(spec, replace(good, **change))
    with pytest.raises(ValueError, match="cannot be"):
        attention.bind(replace(spec, num_kv_heads=3), good)
    for position in (2, 10, -1):
        last[0] = position
        with pytest.raises(ValueError, match="do not fit into 10"):
            attention.bind(spec, good).run()
    last[0] = 8
    with pytest.raises(ValueError, match="do not fit into 6"):
        attention.bind(spec, replace(good, cos=cos[:6], sin=sin[:6])).run()
