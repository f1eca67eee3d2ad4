"""Bidirectional attention over packed texts, without padding the rest of the network.

Texts lie one after the other, sorted by length. Neighbours of nearly the same length form a *group*; only
inside a group are they padded, to its longest text, so the waste is bounded by :data:`LARGEST_WASTE`. Which
rows go where is computed once per batch and serves every layer: one gather brings queries, keys and values
into the layout of all groups, one gather brings the results back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._buffers import to_mlx
from akidb_sidecar.models._functions import softmax_weights

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

LARGEST_WASTE = 1.15
"""Longest length of a group over its shortest."""
SLACK_TOKENS = 2
"""Difference in length that is always allowed in a group."""


@dataclass(frozen=True)
class Group:
    """Texts of nearly the same length: ``texts`` of them, padded to ``longest`` tokens."""

    texts: int
    longest: int
    mask: mx.array | None
    """``(texts, 1, 1, longest)``, 1 for a token and 0 for padding; ``None`` where there is no padding."""


class PackedAttention:
    """The plan for one batch."""

    def __init__(self, lengths: array[int], heads: int) -> None:
        self._heads = heads
        self._groups: list[Group] = []
        sources, targets = [], []
        token, padded_token = 0, 0
        for group_lengths in split_by_length(lengths):
            texts, longest = len(group_lengths), group_lengths[-1]
            group_tokens = sum(group_lengths)
            if group_lengths[0] == longest:
                mask = None
                rows = mx.arange(token, token + group_tokens).reshape(texts, longest)
                places = mx.arange(padded_token, padded_token + group_tokens)
            else:
                sizes = to_mlx(group_lengths)[:, None]
                columns = mx.arange(longest)[None, :]
                starts = mx.cumsum(sizes, axis=0) - sizes
                # Padding repeats a text's last token, so that it never holds the largest score alone.
                rows = token + starts + mx.minimum(columns, sizes - 1)
                is_token = columns < sizes
                mask = is_token.astype(mx.float32)[:, None, None, :]
                places = padded_token + _positions_of_ones(is_token, group_tokens)
            self._groups.append(Group(texts, longest, mask))
            sources.append(self._source_rows(rows))
            targets.append(self._target_rows(places, padded_token, longest))
            token += group_tokens
            padded_token += texts * longest
        self._sources = mx.concatenate(sources)
        self._targets = mx.concatenate(targets)

    def __call__(self, query_key_value: mx.array) -> mx.array:
        """Attend within every text.

        Takes ``(tokens, 3 * dimension)``, queries scaled; returns ``(tokens, dimension)``.
        """
        tokens, width = query_key_value.shape
        head_dimension = width // (3 * self._heads)
        gathered = query_key_value.reshape(-1, head_dimension)[self._sources]
        results = [
            _attend(part.reshape(3, group.texts, self._heads, group.longest, head_dimension), group.mask)
            for group, part in self._parts(gathered)
        ]
        padded = results[0] if len(results) == 1 else mx.concatenate(results)
        return padded[self._targets].reshape(tokens, width // 3)

    def _parts(self, gathered: mx.array) -> Iterator[tuple[Group, mx.array]]:
        start = 0
        for group in self._groups:
            rows = 3 * self._heads * group.texts * group.longest
            yield group, gathered[start : start + rows]
            start += rows

    def _source_rows(self, rows: mx.array) -> mx.array:
        """Rows of ``(tokens * 3 * heads, head_dimension)`` in the order (3, texts, heads, longest)."""
        parts = mx.arange(3)[:, None, None, None] * self._heads
        heads = mx.arange(self._heads)[None, None, :, None]
        return (rows[None, :, None, :] * (3 * self._heads) + parts + heads).reshape(-1)

    def _target_rows(self, places: mx.array, first: int, longest: int) -> mx.array:
        """Rows of the results in the order (tokens, heads); a group is laid out (texts, heads, longest)."""
        places = places - first
        text, position = places // longest, places % longest
        heads = mx.arange(self._heads)[None, :]
        rows = (text[:, None] * self._heads + heads) * longest + position[:, None]
        return (first * self._heads + rows).reshape(-1)


def _attend(query_key_value: mx.array, mask: mx.array | None) -> mx.array:
    """Attention of (3, texts, heads, longest, head_dimension), returned as rows of ``head_dimension``."""
    query, key, value = query_key_value
    weights = softmax_weights(query @ key.swapaxes(-1, -2))
    if mask is not None:
        weights = weights * mask
    # The division comes after the product: it has head_dimension columns instead of longest.
    mixed = (weights @ value) / mx.sum(weights, axis=-1, keepdims=True)
    return mixed.reshape(-1, mixed.shape[-1])


def split_by_length(lengths: array[int]) -> Iterator[array[int]]:
    """Cut sorted lengths into groups of neighbours."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] > max(
            lengths[start] * LARGEST_WASTE, lengths[start] + SLACK_TOKENS
        ):
            yield lengths[start:end]
            start = end


def _positions_of_ones(flags: mx.array, count: int) -> mx.array:
    """Flat positions of the ``count`` true elements, in order."""
    flat = flags.reshape(-1)
    return mx.sort(mx.where(flat, mx.arange(flat.size), flat.size))[:count]
