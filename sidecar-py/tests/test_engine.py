"""The real engine and the real model, against vectors of the reference implementation and against itself."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

import pytest
from conftest import LARGEST_GROWTH_BYTES, GoldenText, cosine, memory_growth, pack, rows, same_cosine

from akidb_sidecar import _mlx_engine
from akidb_sidecar._engine import Batch, Engine, Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.mlx

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
GOLDEN_COSINE = 0.9999
LONGEST = 256


@pytest.fixture(scope="module")
def engine(minilm_path: Path) -> Engine:
    """Return the engine; it keeps no state between batches that could tie one test to another."""
    return _mlx_engine.load(minilm_path, LONGEST)


def embed(
    engine: Engine, texts: Sequence[Sequence[int]], pooling: Pooling = "mean", threads: int = 1
) -> list[array[float]]:
    lengths, token_ids = pack(texts)
    vectors = engine.embed(Batch(lengths, token_ids, pooling, threads))
    assert vectors.nbytes == len(texts) * engine.info.dimension * 4
    return rows(array("f", bytes(vectors)), len(texts))


def made_up_texts(count: int, longest: int) -> list[list[int]]:
    """Return texts of all lengths from one token to the longest, in no order."""
    generator = random.Random(count)  # noqa: S311 - repeatable
    lengths = [1 + (longest - 1) * number // (count - 1) for number in range(count)]
    generator.shuffle(lengths)
    return [[generator.randrange(1000, 30000) for _ in range(length)] for length in lengths]


@pytest.mark.device
def test_engine_says_what_it_is(engine: Engine) -> None:
    info = engine.info
    assert (info.model_type, info.dimension, info.max_tokens) == ("bert", 384, LONGEST)
    assert info.device in ("cpu", "gpu")
    assert info.dtype == ("float32" if info.device == "cpu" else "float16")


@pytest.mark.device
def test_single_texts_have_the_golden_vectors(engine: Engine, golden_texts: list[GoldenText]) -> None:
    for text in golden_texts:
        (vector,) = embed(engine, [text.token_ids])
        assert cosine(vector, text.vector) >= GOLDEN_COSINE


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.device), 1, 2])
def test_batched_texts_have_the_golden_vectors(
    engine: Engine, golden_texts: list[GoldenText], seed: int
) -> None:
    mixed = golden_texts * 2
    random.Random(seed).shuffle(mixed)  # noqa: S311 - repeatable
    for start in range(0, len(mixed), 32):
        batch = mixed[start : start + 32]
        vectors = embed(engine, [text.token_ids for text in batch])
        for text, vector in zip(batch, vectors, strict=True):
            assert cosine(vector, text.vector) >= GOLDEN_COSINE


def test_nearest_texts_come_in_the_golden_order(engine: Engine, golden_texts: list[GoldenText]) -> None:
    """Similarities that differ by more than the precision of the vectors are ordered alike."""
    vectors = embed(engine, [text.token_ids for text in golden_texts])
    compared = 0
    for query in range(0, len(golden_texts), 5):
        ours = [cosine(vectors[query], vector) for vector in vectors]
        golden = [cosine(golden_texts[query].vector, text.vector) for text in golden_texts]
        by_golden = sorted(range(len(golden)), key=golden.__getitem__)
        for lower, higher in pairwise(by_golden):
            if golden[higher] - golden[lower] > 1e-4:
                assert ours[lower] < ours[higher]
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("pooling", POOLINGS)
def test_batch_gives_the_vectors_of_its_single_texts(engine: Engine, pooling: Pooling) -> None:
    texts = made_up_texts(7, LONGEST)
    for text, vector in zip(texts, embed(engine, texts, pooling), strict=True):
        (single,) = embed(engine, [text], pooling)
        assert cosine(vector, single) >= same_cosine(engine)


def test_poolings_differ_for_texts_of_several_tokens(engine: Engine) -> None:
    texts = made_up_texts(8, 40)
    mean, cls, last = (embed(engine, texts, pooling) for pooling in ("mean", "cls", "last"))
    for number, text in enumerate(texts):
        if len(text) > 1:
            assert cosine(mean[number], cls[number]) < 0.999
            assert cosine(mean[number], last[number]) < 0.999
            assert cosine(cls[number], last[number]) < 0.999


@pytest.mark.device
def test_poolings_agree_for_texts_of_one_token(engine: Engine) -> None:
    texts = [[2000], [3000], [4000, 4001, 4002]]
    mean, cls, last = (embed(engine, texts, pooling) for pooling in ("mean", "cls", "last"))
    for number in range(2):
        assert list(cls[number]) == pytest.approx(list(last[number]), abs=1e-5)
        assert list(mean[number]) == pytest.approx(list(last[number]), abs=1e-5)


@pytest.mark.device
def test_mean_of_two_tokens_lies_between_cls_and_last(engine: Engine) -> None:
    texts = [[5, 6, 7, 8], [2000, 3000], [4000, 5000], [9]]
    mean, cls, last = (embed(engine, texts, pooling) for pooling in ("mean", "cls", "last"))
    for number in (1, 2):
        between = [(a + b) / 2 for a, b in zip(cls[number], last[number], strict=True)]
        assert list(mean[number]) == pytest.approx(between, abs=1e-5)


@pytest.mark.device
def test_equal_texts_have_equal_vectors_anywhere_in_a_batch(engine: Engine) -> None:
    text = [101, 7592, 2088, 102]
    vectors = embed(engine, [text, [3000] * 90, text, [2000], text])
    assert cosine(vectors[0], vectors[2]) >= same_cosine(engine)
    assert cosine(vectors[0], vectors[4]) >= same_cosine(engine)
    assert cosine(vectors[0], vectors[1]) < 0.9


def test_number_of_threads_does_not_change_vectors(engine: Engine) -> None:
    texts = made_up_texts(10, 120)
    one, two = embed(engine, texts, threads=1), embed(engine, texts, threads=2)
    for left, right in zip(one, two, strict=True):
        assert cosine(left, right) >= same_cosine(engine)


def test_memory_does_not_grow_over_varied_batches(minilm_path: Path) -> None:
    assert memory_growth(minilm_path, 60, 4, 190) < LARGEST_GROWTH_BYTES
