"""Causal attention over packed texts, with fewer heads for keys and values than for queries.

Texts lie one after the other, sorted by length. As in ``_attention``, neighbours of nearly the same length
form a group, padded at its end to its longest text. No mask is needed against that padding: no token looks
ahead.

Where MLX has no fused kernel, scores are computed for a block of queries at a time, and only for the keys up
to its end: however long a text is, no more than :data:`MOST_SCORES` of them are in memory, or 64 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models._functions import ON_CPU, SCORE_SCALE, softmax_weights
from akidb_sidecar.models._padded_groups import groups

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

MOST_SCORES = 1 << 23
FEWEST_ROWS = 64
MOST_ROWS = 512
FUSED_SIZES = (64, 80, 128)
"""Sizes of heads for which a GPU has a fused kernel; with others it would hold all scores at once."""


class CausalAttention:
    """The plan for one batch."""

    def __init__(self, lengths: array[int], on_step: Callable[[], None]) -> None:
        """``on_step`` is called whenever a block of a long text has been computed."""
        self._on_step = on_step
        self._groups = list(groups(lengths))

    def __call__(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        """Attend within every text.

        ``query`` is ``(tokens, heads, size)``, ``key`` and ``value`` are ``(tokens, fewer heads, size)``.
        Returns ``(tokens, heads * size)``.
        """
        results = [
            group.unpad(self._attend(group.pad(query), group.pad(key), group.pad(value)))
            for group in self._groups
        ]
        return results[0] if len(results) == 1 else mx.concatenate(results)

    def _attend(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        """Attention of (texts, heads, longest, size)."""
        texts, heads, longest, size = query.shape
        if not ON_CPU and size in FUSED_SIZES:
            return mx.fast.scaled_dot_product_attention(query, key, value, scale=size**-0.5, mask="causal")
        rows = min(MOST_ROWS, max(FEWEST_ROWS, MOST_SCORES // (texts * heads * longest)))
        # Else every block would copy all of them.
        query, key, value = (mx.contiguous(x) for x in (query, key, value))
        grouped = (query * (SCORE_SCALE * size**-0.5)).reshape(texts, key.shape[1], -1, longest, size)
        blocks = []
        for start in range(0, longest, rows):
            end = min(start + rows, longest)
            blocks.append(_attend_block(grouped[:, :, :, start:end], key[:, :, :end], value[:, :, :end]))
            if longest > rows:
                mx.eval(blocks[-1])
                self._on_step()
        mixed = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=3)
        return mixed.reshape(query.shape)


def _attend_block(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """Attention of (texts, key heads, queries per key, rows, size); the last row sees the last key."""
    texts, key_heads, share, rows, size = query.shape
    keys = key.shape[2]
    scores = query.reshape(texts, key_heads, share * rows, size) @ key.swapaxes(-1, -2)
    scores = scores.reshape(texts, key_heads, share, rows, keys)
    sees = mx.arange(keys) <= (mx.arange(rows) + (keys - rows))[:, None]
    # Hidden scores must not be the largest, and must weigh nothing.
    weights = softmax_weights(mx.where(sees, scores, -mx.inf)) * sees
    flat = weights.reshape(texts, key_heads, share * rows, keys)
    mixed = (flat @ value) / mx.sum(flat, axis=-1, keepdims=True)
    return mixed.reshape(texts, key_heads, share, rows, size)
