"""Packed texts cut into groups of nearly the same length, and how a group is padded for attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models._attention import split_by_length

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator


@dataclass(frozen=True)
class Group:
    """Texts of nearly the same length, padded at their ends to ``longest`` tokens."""

    first: int
    """The first token of its first text."""
    tokens: int
    texts: int
    longest: int
    rows: mx.array | None
    """``(texts * longest,)``: the token for each place; ``None`` where the texts are of one length."""
    places: mx.array | None
    """``(tokens,)``: the place of each token."""
    is_token: mx.array | None
    """``(texts, 1, 1, longest)``: whether a place is one of a token."""

    def pad(self, x: mx.array) -> mx.array:
        """Turn ``(all tokens, heads, size)`` into ``(texts, heads, longest, size)``.

        Padding repeats the last token of a text.
        """
        own = x[self.first : self.first + self.tokens]
        padded = own if self.rows is None else own[self.rows]
        return padded.reshape(self.texts, self.longest, *x.shape[1:]).swapaxes(1, 2)

    def unpad(self, x: mx.array) -> mx.array:
        """Turn ``(texts, heads, longest, size)`` into ``(tokens, heads * size)``."""
        rows = x.swapaxes(1, 2).reshape(self.texts * self.longest, -1)
        return rows if self.places is None else rows[self.places]


def groups(lengths: array[int]) -> Iterator[Group]:
    """Cut texts, which must be sorted by length."""
    first = 0
    for group in split_by_length(lengths):
        yield _group(first, group)
        first += sum(group)


def _group(first: int, lengths: array[int]) -> Group:
    texts, longest, tokens = len(lengths), lengths[-1], sum(lengths)
    if lengths[0] == longest:
        return Group(first, tokens, texts, longest, None, None, None)
    rows: list[int] = []
    places: list[int] = []
    start = 0
    for text, length in enumerate(lengths):
        rows += [*range(start, start + length), *[start + length - 1] * (longest - length)]
        places += range(text * longest, text * longest + length)
        start += length
    is_token = mx.arange(longest) < mx.array(lengths.tolist())[:, None, None, None]
    return Group(first, tokens, texts, longest, mx.array(rows), mx.array(places), is_token)
