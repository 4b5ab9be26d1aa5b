"""Describes an attention's computation, as plain data."""

from dataclasses import dataclass

_SOFTMAX_ELEMENTS = 32  # the softmax of one score takes as long as so many elements of its key and its value


@dataclass(frozen=True)
class AttentionSpec:
    """Causal attention of M new tokens over a cache: q [M, num_heads * head_dim], k and v [M, num_kv_heads * head_dim].

    Query i sits at position past + i and sees the `window` tokens up to and with itself; None: all of them. Scores
    are q . k * `scale`, bent by softcap * tanh(score / softcap) where `softcap` is above 0. The first `rotary_dim`
    elements of q's and k's heads are turned by position: element i with i + rotary_dim / 2, or with its neighbour
    when `interleaved`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    window: int | None = None
    rotary_dim: int = 0
    interleaved: bool = False


def pair_flops(num_heads: int, head_dim: int) -> int:
    """Floating-point operations of one new token that sees one token, with all its heads.

    q . k and the share of v are four for every element of a head; the softmax counts as `_SOFTMAX_ELEMENTS` more,
    which makes them take equally long whatever the size of the heads.
    """
    return 4 * num_heads * (head_dim + _SOFTMAX_ELEMENTS)
