"""Attention in blocks against attention to everything at once, and the memory that it takes."""

from __future__ import annotations

from array import array
from itertools import accumulate

import pytest

from akidb_sidecar import _mlx_engine
from akidb_sidecar.models import _functions, _windowed_attention
from akidb_sidecar.models._windowed_attention import WindowedAttention, mix_fused, mix_with_products

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

pytestmark = [pytest.mark.mlx, pytest.mark.device]

HEADS, SIZE = 3, 8


def made_up(tokens: int, heads: int = HEADS, size: int = SIZE) -> list[mx.array]:
    """Return queries, keys and values; the queries are scaled."""
    query, key, value = (
        mx.random.normal((tokens, heads, size), key=mx.random.key(seed)) for seed in range(3)
    )
    return [query * (2 * size**-0.5), key, value]


def at_once(query: mx.array, key: mx.array, value: mx.array, window: int | None) -> mx.array:
    """Attention within one text."""
    tokens = query.shape[0]
    distances = mx.abs(mx.arange(tokens)[:, None] - mx.arange(tokens))
    scores = query.swapaxes(0, 1) @ key.swapaxes(0, 1).swapaxes(1, 2)
    seen = mx.where(distances <= (tokens if window is None else window), scores, -mx.inf)
    return (mx.softmax(seen, axis=-1) @ value.swapaxes(0, 1)).swapaxes(0, 1).reshape(tokens, -1)


@pytest.mark.parametrize("most_scores", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("is_fused", [False, True], ids=["products", "fused"])
@pytest.mark.parametrize("window", [None, 0, 1, 8, 64, 400, 5000])
def test_blocks_give_what_all_at_once_gives(
    monkeypatch: pytest.MonkeyPatch, window: int | None, is_fused: bool, most_scores: int
) -> None:
    monkeypatch.setattr(_windowed_attention, "MOST_SCORES", most_scores)
    monkeypatch.setattr(_windowed_attention, "mix", mix_fused if is_fused else mix_with_products)
    scale = 1.0 if is_fused else _functions.SCORE_SCALE
    lengths = array("I", [1, 1, 2, 3, 31, 32, 33, 64, 130, 140, 148, 400])
    query, key, value = made_up(sum(lengths))
    mixed = WindowedAttention(lengths, lambda: None)(query * scale, key, value, window)
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        text = slice(end - length, end)
        expected = at_once(query[text], key[text], value[text], window)
        # The CPU's own exponential is good to 8e-7 of the largest weight, of which a text has many.
        assert mx.allclose(mixed[text], expected, rtol=0, atol=1e-5 if is_fused else 3e-4)


@pytest.mark.parametrize("window", [None, 64])
def test_a_long_text_takes_little_memory_and_tells_how_it_gets_on(window: int | None) -> None:
    tokens, heads, steps = 4096, 8, 0

    def on_step() -> None:
        nonlocal steps
        steps += 1

    _mlx_engine.BLAS.set_threads(1)
    query, key, value = made_up(tokens, heads)
    mx.eval(query, key, value)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(WindowedAttention(array("I", [tokens]), on_step)(query, key, value, window))
    assert steps >= tokens / _windowed_attention.ROWS_IN_WINDOWS
    all_scores = 4 * heads * tokens * tokens
    assert mx.get_peak_memory() - before < all_scores / 10
