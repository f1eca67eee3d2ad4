"""Bidirectional attention over packed texts, for texts of any length: to all of a text, or within a window.

As in ``_attention``, neighbours of nearly the same length form a group, padded to its longest text. Scores
are computed for a block of queries at a time, and only for the keys that one of them sees: of all scores no
more than :data:`MOST_SCORES` are in memory, or those of :data:`FEWEST_ROWS` rows, and no mask is larger than
a block of one head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models import TOKENS_PER_STEP
from akidb_sidecar.models._functions import ON_CPU, softmax_weights
from akidb_sidecar.models._padded_groups import Group, groups

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

MOST_SCORES = 1 << 20 if ON_CPU else 1 << 26
"""On a CPU they should stay in its caches: with four times as many a text of 2,048 tokens takes 1.8 times."""
FEWEST_ROWS = 32
ROWS_IN_WINDOWS = 128
"""With more rows a block has more keys that none of most of its queries sees; with fewer, more products."""


class WindowedAttention:
    """The plan for one batch."""

    def __init__(self, lengths: array[int], on_step: Callable[[], None]) -> None:
        """``on_step`` is called whenever a block of a long batch has been computed."""
        self._groups = list(groups(lengths))
        self._on_step = on_step

    def __call__(
        self, query: mx.array, key: mx.array, value: mx.array, window: int | None = None
    ) -> mx.array:
        """Attend within every text, to at most ``window`` tokens before and behind each.

        All are ``(tokens, heads, size)``; queries are scaled, and by ``SCORE_SCALE``, too.
        Returns ``(tokens, heads * size)``.
        """
        results = [
            group.unpad(self._attend(group, group.pad(query), group.pad(key), group.pad(value), window))
            for group in self._groups
        ]
        return results[0] if len(results) == 1 else mx.concatenate(results)

    def _attend(
        self, group: Group, query: mx.array, key: mx.array, value: mx.array, window: int | None
    ) -> mx.array:
        """Attention of (texts, heads, longest, size)."""
        texts, heads, longest, _ = query.shape
        # Or every block would copy what it reads: a product takes rows that lie one behind the other.
        query, key, value = (mx.contiguous(x) for x in (query, key, value))
        if window is None or window >= longest:
            window, most_rows = longest, longest
        else:
            most_rows = ROWS_IN_WINDOWS
        keys_of_block = min(longest, most_rows + 2 * window)
        rows = min(most_rows, max(FEWEST_ROWS, MOST_SCORES // (texts * heads * keys_of_block)))
        blocks = []
        for start in range(0, longest, rows):
            end = min(start + rows, longest)
            seen = slice(max(0, start - window), min(longest, end + window))
            mask = None if group.is_token is None else group.is_token[..., seen]
            if window < longest:
                mask = _both(mask, _within(window, slice(start, end), seen))
            blocks.append(mix(query[:, :, start:end], key[:, :, seen], value[:, :, seen], mask))
            if rows < longest and texts * longest > TOKENS_PER_STEP:
                mx.eval(blocks[-1])
                self._on_step()
        return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)


def mix_with_products(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
    """Attention of a block: ``(texts, heads, rows, size)`` to ``(texts, heads, keys, size)``."""
    scores = query @ key.swapaxes(-1, -2)
    if mask is None:
        weights = softmax_weights(scores)
    else:
        # Hidden scores must not be the largest, and must weigh nothing.
        weights = softmax_weights(mx.where(mask, scores, -mx.inf)) * mask
    return (weights @ value) / mx.sum(weights, axis=-1, keepdims=True)


def mix_fused(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
    """Do the same with MLX's own kernel."""
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=1.0, mask=mask)


mix = mix_with_products if ON_CPU else mix_fused


def _within(window: int, queries: slice, keys: slice) -> mx.array:
    """Return ``(queries, keys)``: whether one sees the other."""
    distances = mx.arange(queries.start, queries.stop)[:, None] - mx.arange(keys.start, keys.stop)
    return mx.abs(distances) <= window


def _both(mask: mx.array | None, other: mx.array) -> mx.array:
    return other if mask is None else mask & other
