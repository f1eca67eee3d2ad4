"""Attention in groups and blocks against attention to everything at once, and the memory that it takes."""

from __future__ import annotations

from array import array
from itertools import accumulate

import pytest

from akidb_sidecar import _mlx_engine
from akidb_sidecar.models import _attention
from akidb_sidecar.models._attention import PackedAttention, Scope, mix_fused, mix_with_products

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

pytestmark = [pytest.mark.mlx, pytest.mark.device]

HEADS, KEY_HEADS, SIZE = 4, 2, 8
LENGTHS = array("I", [1, 1, 2, 3, 31, 32, 33, 64, 130, 140, 148, 400])
SCOPES = [Scope(is_causal=True), *(Scope(window=window) for window in (None, 0, 1, 8, 64, 400, 5000))]


def made_up(tokens: int, heads: int = HEADS, key_heads: int = HEADS, size: int = SIZE) -> list[mx.array]:
    """Return queries, keys and values."""
    return [
        mx.random.normal((tokens, count, size), key=mx.random.key(seed)) * (2 if seed == 0 else 1)
        for seed, count in enumerate((heads, key_heads, key_heads))
    ]


def at_once(query: mx.array, key: mx.array, value: mx.array, scope: Scope) -> mx.array:
    """Attention within one text, computed in the plainest way."""
    tokens, heads, size = query.shape
    key, value = (mx.repeat(x, heads // x.shape[1], axis=1) for x in (key, value))
    distances = mx.arange(tokens)[:, None] - mx.arange(tokens)
    sees = mx.abs(distances) <= (tokens if scope.window is None else scope.window)
    if scope.is_causal:
        sees = sees & (distances >= 0)
    scores = query.swapaxes(0, 1) @ key.swapaxes(0, 1).swapaxes(1, 2) * size**-0.5
    weights = mx.softmax(mx.where(sees, scores, -mx.inf), axis=-1)
    return (weights @ value.swapaxes(0, 1)).swapaxes(0, 1).reshape(tokens, -1)


@pytest.mark.parametrize("most_scores", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("is_fused", [False, True], ids=["products", "fused"])
@pytest.mark.parametrize("key_heads", [KEY_HEADS, HEADS])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_groups_and_blocks_give_what_all_at_once_gives(
    monkeypatch: pytest.MonkeyPatch, scope: Scope, key_heads: int, is_fused: bool, most_scores: int
) -> None:
    monkeypatch.setattr(_attention, "MOST_SCORES", most_scores)
    monkeypatch.setattr(_attention, "MOST_FUSED_SCORES", most_scores)
    monkeypatch.setattr(_attention, "FUSED_SIZES", (SIZE,) if is_fused else ())
    monkeypatch.setattr(_attention, "mix", mix_fused if is_fused else mix_with_products)
    query, key, value = made_up(sum(LENGTHS), HEADS, key_heads)
    mixed = PackedAttention(LENGTHS, lambda: None)(HEADS, query, key, value, scope=scope)
    for end, length in zip(accumulate(LENGTHS), LENGTHS, strict=True):
        text = slice(end - length, end)
        expected = at_once(query[text], key[text], value[text], scope)
        # The CPU's own exponential is good to 8e-7 of the largest weight, of which a text has many.
        assert mx.allclose(mixed[text], expected, rtol=0, atol=1e-5 if is_fused else 3e-4)


@pytest.mark.parametrize("pieces", [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 2]], ids=str)
def test_queries_keys_and_values_come_in_any_number_of_arrays(pieces: list[int]) -> None:
    parts = made_up(sum(LENGTHS), HEADS, KEY_HEADS)
    apart = PackedAttention(LENGTHS, lambda: None)(HEADS, *parts, scope=Scope())
    in_pieces = [
        mx.concatenate([part for part, own in zip(parts, pieces, strict=True) if own == piece], axis=1)
        for piece in sorted(set(pieces))
    ]
    together = PackedAttention(LENGTHS, lambda: None)(HEADS, *in_pieces, scope=Scope())
    assert mx.allclose(together, apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scope", [Scope(), Scope(window=64), Scope(is_causal=True)], ids=str)
def test_a_long_text_takes_little_memory_and_tells_how_it_gets_on(
    monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    tokens, heads, steps = 4096, 8, 0
    monkeypatch.setattr(_attention, "mix", mix_with_products)
    monkeypatch.setattr(_attention, "TOKENS_PER_STEP", 1024)
    monkeypatch.setattr(_attention, "MOST_SCORES", 1 << 20)
    monkeypatch.setattr(_attention, "ROWS_IN_WINDOWS", 128)

    def on_step() -> None:
        nonlocal steps
        steps += 1

    _mlx_engine.BLAS.set_threads(1)
    parts = made_up(tokens, heads, heads)
    mx.eval(parts)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(PackedAttention(array("I", [tokens]), on_step)(heads, *parts, scope=scope))
    assert steps >= tokens / 128
    all_scores = 4 * heads * tokens * tokens
    assert mx.get_peak_memory() - before < all_scores / 10


def test_no_kernel_of_a_gpu_runs_over_more_scores_than_a_second_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []

    def mix(query: mx.array, key: mx.array, value: mx.array, _scale: float, _mask: object) -> mx.array:
        computed.append(query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2])
        return mx.zeros((*query.shape[:3], value.shape[3]))

    monkeypatch.setattr(_attention, "FUSED_SIZES", (SIZE,))
    monkeypatch.setattr(_attention, "mix", mix)
    for longest in (8192, 32_768):
        computed.clear()
        part = mx.zeros((longest, 48, SIZE))
        PackedAttention(array("I", [longest]), lambda: None)(16, part, scope=Scope(is_causal=True))
        assert max(computed) <= 1 << 30
        assert len(computed) == (longest // 8192) ** 2
