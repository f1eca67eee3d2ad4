"""How token vectors become one text vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from akidb_sidecar._engine import Pooling


def pool(hidden: mx.array, pooling: Pooling, starts: mx.array, lengths: mx.array) -> mx.array:
    """Pool packed token vectors.

    ``hidden`` is ``(tokens, dimension)``, text after text; ``starts`` and ``lengths`` are ``(texts,)`` in
    tokens.
    Returns ``(texts, dimension)``.
    """
    if pooling == "cls":
        return hidden[starts]
    if pooling == "last":
        return hidden[starts + lengths - 1]
    return _segment_sums(hidden, starts) / lengths[:, None]


def _segment_sums(hidden: mx.array, starts: mx.array) -> mx.array:
    """Sum the rows of each text: one product with a 0/1 matrix, which costs less than a sum per text."""
    tokens = mx.arange(hidden.shape[0])
    ends = mx.concatenate([starts[1:], mx.array([hidden.shape[0]], dtype=starts.dtype)])
    belongs = (tokens >= starts[:, None]) & (tokens < ends[:, None])
    # In float16 the sum over a long text would overflow.
    return belongs.astype(mx.float32) @ hidden.astype(mx.float32)
