"""Causal attention over packed texts, with fewer heads for keys and values than for queries.

Texts lie one after the other, sorted by length. As in ``_attention``, neighbours of nearly the same length
form a group, padded at its end to its longest text. No mask is needed against that padding: no token looks
ahead.

Where MLX has no fused kernel, scores are computed for a block of queries at a time, and only for the keys up
to its end: however long a text is, no more than :data:`MOST_SCORES` of them are in memory, or 64 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models._attention import split_by_length
from akidb_sidecar.models._functions import ON_CPU, SCORE_SCALE, softmax_weights

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

MOST_SCORES = 1 << 23
FEWEST_ROWS = 64
MOST_ROWS = 512
FUSED_SIZES = (64, 80, 128)
"""Sizes of heads for which a GPU has a fused kernel; with others it would hold all scores at once."""


@dataclass(frozen=True)
class Group:
    """Texts of nearly the same length, padded to ``longest`` tokens."""

    first: int
    """The first token of its first text."""
    tokens: int
    texts: int
    longest: int
    rows: mx.array | None
    """``(texts * longest,)``: the token for each place; ``None`` where the texts are of one length."""
    places: mx.array | None
    """``(tokens,)``: the place of each token."""


class CausalAttention:
    """The plan for one batch."""

    def __init__(self, lengths: array[int], on_step: Callable[[], None]) -> None:
        """``on_step`` is called whenever a block of a long text has been computed."""
        self._on_step = on_step
        self._groups: list[Group] = []
        first = 0
        for group in split_by_length(lengths):
            self._groups.append(_group(first, group))
            first += sum(group)

    def __call__(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        """Attend within every text.

        ``query`` is ``(tokens, heads, size)``, ``key`` and ``value`` are ``(tokens, fewer heads, size)``.
        Returns ``(tokens, heads * size)``.
        """
        results = []
        for group in self._groups:
            padded = [_pad(x[group.first : group.first + group.tokens], group) for x in (query, key, value)]
            mixed = self._attend(*padded).swapaxes(1, 2).reshape(group.texts * group.longest, -1)
            results.append(mixed if group.places is None else mixed[group.places])
        return results[0] if len(results) == 1 else mx.concatenate(results)

    def _attend(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        """Attention of (texts, heads, longest, size)."""
        texts, heads, longest, size = query.shape
        if not ON_CPU and size in FUSED_SIZES:
            return mx.fast.scaled_dot_product_attention(query, key, value, scale=size**-0.5, mask="causal")
        rows = min(MOST_ROWS, max(FEWEST_ROWS, MOST_SCORES // (texts * heads * longest)))
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


def _group(first: int, lengths: array[int]) -> Group:
    texts, longest, tokens = len(lengths), lengths[-1], sum(lengths)
    if lengths[0] == longest:
        return Group(first, tokens, texts, longest, None, None)
    rows: list[int] = []
    places: list[int] = []
    start = 0
    for text, length in enumerate(lengths):
        rows += [*range(start, start + length), *[start + length - 1] * (longest - length)]
        places += range(text * longest, text * longest + length)
        start += length
    return Group(first, tokens, texts, longest, mx.array(rows), mx.array(places))


def _pad(x: mx.array, group: Group) -> mx.array:
    """(tokens, heads, size) to (texts, heads, longest, size)."""
    padded = x if group.rows is None else x[group.rows]
    return padded.reshape(group.texts, group.longest, *x.shape[1:]).swapaxes(1, 2)
