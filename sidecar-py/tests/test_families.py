"""Families of models against ``transformers``: tiny checkpoints of ``scripts/parity``, on each engine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from conftest import TESTS, cosine, same_cosine
from engines import in_kernels, in_mlx
from tiny_families import (
    FAMILIES,
    IN_KERNELS,
    LONGEST_TEXT,
    POOLINGS,
    PREFIXES,
    copy,
    embed,
    engine_of,
    golden,
    read_config,
    tensors_of,
)

from akidb_sidecar import _mlx_engine
from akidb_sidecar._errors import BatchError
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar.models import _steps

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar._engine import Pooling

pytestmark = pytest.mark.mlx

ENGINES = [
    *(pytest.param(family, "mlx", marks=pytest.mark.device) for family in FAMILIES),
    *(pytest.param(family, "kernels") for family in IN_KERNELS),
]


@pytest.mark.device
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_compute_what_fits_them_where_a_cpu_computes(family: str) -> None:
    folder = TESTS / "golden" / family
    engine = _mlx_engine.load(folder, LONGEST_TEXT[family])
    on_cpu = engine.info.device == "cpu"
    assert isinstance(engine, KernelEngine if on_cpu and family in IN_KERNELS else MlxEngine)
    assert engine.info.warnings == ()
    assert engine.info.model_type == read_config(folder)["model_type"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_single_texts_have_the_golden_vectors(family: str, kind: str, pooling: Pooling) -> None:
    engine = engine_of(family, kind)
    for text in golden(family):
        (vector,) = embed(engine, [text.token_ids], pooling)
        assert cosine(vector, text.vectors[pooling]) >= same_cosine(engine)
        tolerance = 1e-3 if engine.info.dtype == "float32" else 2e-2
        assert list(vector) == pytest.approx(text.vectors[pooling], abs=tolerance)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_batched_texts_have_the_golden_vectors(family: str, kind: str, pooling: Pooling) -> None:
    engine = engine_of(family, kind)
    for seed in range(3 if engine.info.dtype == "float32" else 1):
        texts = golden(family) * (1 + seed % 2)
        random.Random(seed).shuffle(texts)  # noqa: S311 - repeatable
        vectors = embed(engine, [text.token_ids for text in texts], pooling)
        for text, vector in zip(texts, vectors, strict=True):
            assert cosine(vector, text.vectors[pooling]) >= same_cosine(engine)


@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_a_batch_of_texts_of_every_length_gives_the_vectors_of_single_ones(family: str, kind: str) -> None:
    engine, words = engine_of(family, kind), golden(family)[-1].token_ids
    texts = [words[:length] for length in (*range(1, 1 + min(len(words), 129)), 300, 555, 800)]
    random.Random(1).shuffle(texts)  # noqa: S311 - repeatable
    for start in range(0, len(texts), 64):
        batch = texts[start : start + 64]
        for text, vector in zip(batch, embed(engine, batch), strict=True):
            (single,) = embed(engine, [text])
            assert cosine(vector, single) >= same_cosine(engine)


@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_the_longest_text_is_computed_and_a_longer_one_refused(family: str, kind: str) -> None:
    engine, longest = engine_of(family, kind), LONGEST_TEXT[family]
    embed(engine, [[5] * longest])
    with pytest.raises(BatchError):
        embed(engine, [[5] * (longest + 1)])


@pytest.mark.device
@pytest.mark.parametrize("family", PREFIXES)
def test_names_may_have_the_prefix_of_a_model_with_a_head(family: str, tmp_path: Path) -> None:
    tensors = {PREFIXES[family] + name: tensor for name, tensor in tensors_of(family).items()}
    engine = _mlx_engine.load(copy(family, tmp_path, {}, tensors), LONGEST_TEXT[family])
    for text in golden(family):
        (vector,) = embed(engine, [text.token_ids])
        assert cosine(vector, text.vectors["mean"]) >= same_cosine(engine)


@pytest.mark.device
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_any_floating_type_are_computed_in_the_type_of_the_device(
    family: str, dtype: mx.Dtype, tmp_path: Path
) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of(family).items()}
    engine = _mlx_engine.load(copy(family, tmp_path, {}, tensors), LONGEST_TEXT[family])
    assert engine.info.dtype == ("float32" if engine.info.device == "cpu" else "float16")
    for text in golden(family)[:4]:
        (vector,) = embed(engine, [text.token_ids])
        assert cosine(vector, text.vectors["mean"]) >= (
            0.999 if dtype == mx.bfloat16 else same_cosine(engine)
        )


@pytest.mark.device
@pytest.mark.parametrize("name", ["roberta", "camembert"])
def test_kin_of_xlm_roberta_are_computed_alike(name: str, tmp_path: Path) -> None:
    engine = _mlx_engine.load(copy("tiny-xlm-roberta", tmp_path, {"model_type": name}), 128)
    assert engine.info.model_type == name
    text = golden("tiny-xlm-roberta")[-1]
    (vector,) = embed(engine, [text.token_ids])
    assert cosine(vector, text.vectors["mean"]) >= same_cosine(engine)


@pytest.mark.device
def test_long_texts_are_computed_by_mlx_as_by_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 1500
    monkeypatch.setattr(_steps, "NUMBERS_PER_STEP", 0)
    tensors = tensors_of("tiny-xlm-roberta")
    positions = mx.random.normal((longest + 2, 64), key=mx.random.key(1)) * 0.5
    tensors["embeddings.position_embeddings.weight"] = positions
    folder = copy("tiny-xlm-roberta", tmp_path, {"max_position_embeddings": longest + 2}, tensors)
    kernels, mlx = in_kernels(folder, longest), in_mlx(folder, longest)
    texts = [[5 + (place * place) % 150 for place in range(length)] for length in (7, longest, 513, 560, 1)]
    before = mlx.steps_done()
    for ours, theirs in zip(embed(kernels, texts, "cls"), embed(mlx, texts, "cls"), strict=True):
        assert cosine(ours, theirs) >= same_cosine(mlx)
    assert mlx.steps_done() - before > read_config(folder)["num_hidden_layers"]


@pytest.mark.device
def test_padding_tokens_in_a_text_are_not_counted_as_places(tmp_path: Path) -> None:
    # As in transformers: every `<pad>` in a text has the same position, which is not counted.
    texts = [[0, 5, 1, 7, 1, 1, 9, 2], [1, 5, 2], [0, 5, 2, 1], [5, 7]]
    roberta = copy("tiny-xlm-roberta", tmp_path / "roberta", {})
    tensors = tensors_of("tiny-xlm-roberta")
    name = "embeddings.position_embeddings.weight"
    positions = tensors[name]
    for index, text in enumerate(texts):
        rows, place = [], 2
        for token in text:
            rows.append(1 if token == 1 else place)
            place += token != 1
        tensors[name] = mx.concatenate([positions[mx.array(rows)], positions[: 128 - len(rows)]])
        change = {"model_type": "bert", "max_position_embeddings": 128}
        plain = copy("tiny-xlm-roberta", tmp_path / str(index), change, tensors)
        (expected,) = embed(_mlx_engine.load(plain, 64), [text])
        for engine in (in_kernels(roberta, 64), in_mlx(roberta, 64)):
            assert cosine(embed(engine, texts)[index], expected) >= 0.9999


@pytest.mark.device
def test_positions_begin_behind_the_padding_token(tmp_path: Path) -> None:
    engine = _mlx_engine.load(copy("tiny-xlm-roberta", tmp_path, {"pad_token_id": 9}), 128)
    embed(engine, [[5] * 120])
    with pytest.raises(BatchError):
        embed(engine, [[5] * 121])
