"""Attention over packed texts, without padding the rest of the network.

Texts are concatenated, sorted by length. Neighbours of nearly the same length form a *group*; only
inside a group are they padded, to its longest text, so the waste is bounded by :data:`LARGEST_WASTE`. Which
token goes where is found once for a batch and serves every layer: one gather lays out all groups, one brings
their results back.

A group's scores are computed for a block of queries at a time, and only for the keys that one of them may
see: however long a text is, no more than :data:`MOST_SCORES` of them are in memory, or those of
:data:`FEWEST_ROWS` rows. A GPU has kernels that never hold them, for the sizes of heads in
:data:`FUSED_SIZES`; there a block is only so small that no kernel runs for long, because the watchdog of
macOS ends one that takes seconds.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._buffers import to_mlx
from akidb_sidecar.models._functions import ON_CPU, SCORE_SCALE, softmax_weights
from akidb_sidecar.models._steps import TOKENS_PER_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LARGEST_WASTE = 1.15 if ON_CPU else 1.5
"""Longest length of a group over its shortest. On a GPU ten more kernels a layer cost more than padding."""
SLACK_TOKENS = 2 if ON_CPU else 32
"""Difference in length that is always allowed in a group."""
MOST_SCORES = 1 << 20 if ON_CPU else 1 << 26
"""On a CPU they should stay in its caches: with four times as many a text of 2,048 tokens takes 1.8 times."""
FEWEST_ROWS = 32
FUSED_SIZES = () if ON_CPU else (64, 72, 80, 96, 128)
MOST_FUSED_SCORES = 1 << 30
"""Of one kernel: 8,192 queries, each with 8,192 keys in 16 heads. It takes less than a second on an M1."""
ROWS_IN_WINDOWS = 128 if ON_CPU else 1024
"""With more rows a block has more keys that none of most of its queries sees; with fewer, more products."""
CAUSAL_ROWS = 512
"""The same for causal attention, where no kernel leaves out what is hidden."""


@dataclass(frozen=True)
class Scope:
    """Which tokens of its text a token sees: all by default."""

    window: int | None = None
    """To at most this many tokens before and after it."""
    is_causal: bool = False
    """Only to itself and those before it."""


@dataclass(frozen=True)
class Group:
    """Texts of nearly the same length, padded at their ends to ``longest`` tokens."""

    first: int
    """Its first place in what :class:`PackedAttention` lays out."""
    texts: int
    longest: int
    is_token: mx.array | None
    """``(texts, 1, 1, longest)``: whether a place is one of a token; ``None`` where all are."""


class PackedAttention:
    """The plan for one batch."""

    def __init__(self, lengths: array[int], on_step: Callable[[], None]) -> None:
        """``on_step`` is called whenever a block of a long batch has been computed."""
        self._on_step = on_step
        self._groups: list[Group] = []
        tokens, places = array("I"), array("I")
        token = place = 0
        for group in split_by_length(lengths):
            texts, longest = len(group), group[-1]
            is_token = None if group[0] == longest else _is_token(group)
            self._groups.append(Group(place, texts, longest, is_token))
            for length in group:
                tokens.extend(range(token, token + length))
                # Padding repeats a text's last token, so that it never holds the largest score alone.
                tokens.extend(array("I", [token + length - 1]) * (longest - length))
                places.extend(range(place, place + length))
                token, place = token + length, place + longest
        is_padded = place > token
        self._tokens = to_mlx(tokens) if is_padded else None
        self._places = to_mlx(places) if is_padded else None

    def __call__(self, heads: int, *parts: mx.array, scope: Scope) -> mx.array:
        """Attend within every text.

        ``parts`` are the queries, with ``heads`` of them, then the keys, then the values, one after the
        other in as few arrays of ``(tokens, any number of heads, size)`` as they come in. Keys and values may
        have fewer heads. Returns ``(tokens, heads * size)``.
        """
        padded = [part if self._tokens is None else part[self._tokens] for part in parts]
        key_heads = (sum(part.shape[1] for part in parts) - heads) // 2
        results = [
            self._attend(
                group, (heads, key_heads, key_heads), [_of_group(group, part) for part in padded], scope
            )
            for group in self._groups
        ]
        mixed = results[0] if len(results) == 1 else mx.concatenate(results)
        return mixed if self._places is None else mixed[self._places]

    def _attend(
        self, group: Group, counts: tuple[int, ...], parts: Sequence[mx.array], scope: Scope
    ) -> mx.array:
        """Attention of ``(texts, any number of heads, longest, size)``, returned as rows for all heads."""
        texts, longest, size = group.texts, group.longest, parts[0].shape[-1]
        is_fused = size in FUSED_SIZES
        if not is_fused:
            # Or every product would copy what it reads: it needs contiguous rows.
            parts = [mx.contiguous(part) for part in parts]
        query, key, value = _cut(parts, counts)
        blocks = []
        rows = _rows_of_blocks(group, counts[0], scope, is_fused=is_fused)
        for start in range(0, longest, rows):
            queries = slice(start, min(start + rows, longest))
            keys = _seen(queries, longest, scope)
            mask = _mask(group, queries, keys, scope)
            blocks.append(mix(query[:, :, queries], key[:, :, keys], value[:, :, keys], size**-0.5, mask))
            if rows < longest and texts * longest > TOKENS_PER_STEP:
                mx.eval(blocks[-1])
                self._on_step()
        mixed = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)
        return mixed.swapaxes(1, 2).reshape(texts * longest, -1)


def mix_with_products(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Attention of a block: ``(texts, heads, rows, size)`` to ``(texts, key heads, keys, size)``."""
    texts, heads, rows, size = query.shape
    key_heads, keys = key.shape[1:3]
    by_key = (texts, key_heads, heads // key_heads * rows, -1)
    scores = (query * (scale * SCORE_SCALE)).reshape(by_key) @ key.swapaxes(-1, -2)
    if mask is None:
        weights = softmax_weights(scores)
    else:
        mask = causal(rows, keys) if isinstance(mask, str) else mask
        scores = scores.reshape(texts, heads, rows, keys)
        # Hidden scores must not be the largest, and must weigh nothing.
        weights = (softmax_weights(mx.where(mask, scores, -mx.inf)) * mask).reshape(by_key)
    # The division comes after the product: it has ``size`` columns, most often fewer than there are keys.
    return ((weights @ value) / mx.sum(weights, axis=-1, keepdims=True)).reshape(texts, heads, rows, size)


def mix_fused(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Do the same with MLX's own kernel, or with its products, where the softmax is computed in float32."""
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)


mix = mix_with_products if ON_CPU else mix_fused


def split_by_length(lengths: array[int]) -> Iterator[array[int]]:
    """Cut sorted lengths into groups of neighbours."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] > max(
            lengths[start] * LARGEST_WASTE, lengths[start] + SLACK_TOKENS
        ):
            yield lengths[start:end]
            start = end


def causal(queries: int, keys: int) -> mx.array:
    """Return ``(queries, keys)``: whether one sees the other where the last query is that of the last key."""
    return mx.arange(keys) <= (mx.arange(queries) + (keys - queries))[:, None]


def _is_token(lengths: array[int]) -> mx.array:
    return mx.arange(lengths[-1]) < to_mlx(lengths)[:, None, None, None]


def _of_group(group: Group, x: mx.array) -> mx.array:
    """Turn ``(places, heads, size)`` into ``(texts, heads, longest, size)``."""
    own = x[group.first : group.first + group.texts * group.longest]
    return own.reshape(group.texts, group.longest, *x.shape[1:]).swapaxes(1, 2)


def _cut(parts: Sequence[mx.array], counts: tuple[int, ...]) -> list[mx.array]:
    """Split concatenated projections along the heads."""
    pieces: list[mx.array] = []
    for part in parts:
        start = 0
        while start < part.shape[1]:
            count = counts[len(pieces)]
            pieces.append(part[:, start : start + count])
            start += count
    return pieces


def _rows_of_blocks(group: Group, heads: int, scope: Scope, *, is_fused: bool) -> int:
    """Return for how many queries at a time scores are computed."""
    most_rows = keys = group.longest
    if scope.window is not None and scope.window < group.longest:
        most_rows = min(most_rows, ROWS_IN_WINDOWS)
        keys = min(keys, most_rows + 2 * scope.window)
    elif scope.is_causal and not is_fused:
        most_rows = min(most_rows, CAUSAL_ROWS)
    most_scores = MOST_FUSED_SCORES if is_fused else MOST_SCORES
    return min(most_rows, max(FEWEST_ROWS, most_scores // (group.texts * heads * keys)))


def _seen(queries: slice, longest: int, scope: Scope) -> slice:
    """Return the keys that one of the queries sees."""
    window = longest if scope.window is None else scope.window
    return slice(
        max(0, queries.start - window),
        queries.stop if scope.is_causal else min(longest, queries.stop + window),
    )


def _mask(group: Group, queries: slice, keys: slice, scope: Scope) -> mx.array | str | None:
    """Return what of these keys each of the queries sees, if not all."""
    if scope.is_causal:
        return "causal"  # which hides the padding, too: it comes after the tokens
    is_token = None if group.is_token is None else group.is_token[..., keys]
    if scope.window is None or scope.window >= group.longest:
        return is_token
    distances = mx.arange(queries.start, queries.stop)[:, None] - mx.arange(keys.start, keys.stop)
    is_near = mx.abs(distances) <= scope.window
    return is_near if is_token is None else is_token & is_near
