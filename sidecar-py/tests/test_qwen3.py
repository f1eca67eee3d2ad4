"""Qwen3 against golden vectors, against a plain implementation in other geometries, and against itself."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest
from conftest import LARGEST_GROWTH_BYTES, GoldenText, cosine, memory_growth, pack, rows, same_cosine
from engines import in_kernels, in_mlx
from precision.golden import read as read_golden
from qwen3_checkpoint import Checkpoint, reference_vector

from akidb_sidecar import _mlx_engine, configurations
from akidb_sidecar._engine import Batch, Engine
from akidb_sidecar._errors import BatchError
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar._quantization import look_up
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import _attention, _steps, qwen3

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.mlx

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_COSINE = 0.9999
LONGEST = 2048

# On a GPU nothing is ever dequantized: there one of the 4 bits is enough.
ENGINES = {
    "plain, kernels": ("tiny-qwen3", "kernels"),
    "plain, MLX": ("tiny-qwen3", "mlx"),
    "4 bits dequantized, kernels": ("tiny-qwen3-4bit", "kernels"),
    "4 bits dequantized, MLX": ("tiny-qwen3-4bit", "mlx"),
    "4 bits kept, kernels": ("tiny-qwen3-4bit", "kernels, quantized"),
    "4 bits kept, MLX": ("tiny-qwen3-4bit", "mlx, quantized"),
}
ON_ANY_DEVICE = ("plain, MLX", "4 bits kept, MLX")


def load(path: Path, how: str, max_tokens: int = LONGEST) -> Engine:
    """Load a model so that it is computed in a certain way."""
    what, _, kept = how.partition(", ")
    return (in_kernels if what == "kernels" else in_mlx)(path, max_tokens, "quantized" if kept else "float32")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.device if name in ON_ANY_DEVICE else ()) for name in ENGINES
    ],
    ids=lambda name: name.replace(" ", "-"),
)
def golden(request: pytest.FixtureRequest) -> tuple[Engine, list[GoldenText]]:
    """Return an engine and the texts whose vectors are known."""
    name, how = ENGINES[request.param]
    model = read_golden(name)
    return load(model.folder, how), model.texts


def embed(
    engine: Engine, texts: Sequence[Sequence[int]], pooling: Any = "last", threads: int = 2
) -> list[array[float]]:
    lengths, token_ids = pack(texts)
    return rows(array("f", bytes(engine.embed(Batch(lengths, token_ids, pooling, threads)))), len(texts))


def made_up_text(length: int, seed: int, vocabulary: int = 2048) -> list[int]:
    generator = random.Random(seed)  # noqa: S311 - repeatable
    return [generator.randrange(vocabulary) for _ in range(length)]


def longest(engine: Engine) -> int:
    """Return the length of a text that does not take the engine seconds: MLX's CPU is slow in short types."""
    if isinstance(engine, KernelEngine):
        return LONGEST
    return 700 if engine.info.dtype == "float32" else 64


def test_single_texts_have_the_golden_vectors(golden: tuple[Engine, list[GoldenText]]) -> None:
    engine, texts = golden
    for text in texts:
        assert cosine(embed(engine, [text.token_ids])[0], text.vector) >= GOLDEN_COSINE


def test_one_batch_has_the_golden_vectors(golden: tuple[Engine, list[GoldenText]]) -> None:
    engine, texts = golden
    for text, vector in zip(texts, embed(engine, [text.token_ids for text in texts]), strict=True):
        assert cosine(vector, text.vector) >= GOLDEN_COSINE


def test_batches_mixed_with_long_texts_have_the_golden_vectors(
    golden: tuple[Engine, list[GoldenText]],
) -> None:
    engine, texts = golden
    lengths = (longest(engine) // 3, longest(engine) // 2, longest(engine))
    long_texts = [GoldenText(made_up_text(length, length), []) for length in lengths]
    for seed in range(3 if engine.info.dtype == "float32" else 1):
        mixed = texts + long_texts
        random.Random(seed).shuffle(mixed)  # noqa: S311 - repeatable
        vectors = embed(engine, [text.token_ids for text in mixed])
        compared = [
            cosine(vector, text.vector) for text, vector in zip(mixed, vectors, strict=True) if text.vector
        ]
        assert len(compared) == len(texts)
        assert min(compared) >= GOLDEN_COSINE


def test_a_batch_of_texts_of_all_lengths_equals_the_single_ones(
    golden: tuple[Engine, list[GoldenText]],
) -> None:
    engine, _ = golden
    lengths = [1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 127, 200, 511, 512, 513, 700, 1025, 2047, 2048]
    texts = [made_up_text(length, length) for length in lengths if length <= longest(engine)]
    random.Random(4).shuffle(texts)  # noqa: S311 - repeatable
    for text, vector in zip(texts, embed(engine, texts), strict=True):
        assert cosine(vector, embed(engine, [text])[0]) >= same_cosine(engine)


def test_the_kernels_are_chosen_where_a_cpu_computes() -> None:
    engine = _mlx_engine.load(GOLDEN / "tiny-qwen3", LONGEST)
    assert isinstance(engine, KernelEngine if engine.info.device == "cpu" else MlxEngine)


def test_a_text_is_the_beginning_of_a_longer_one(golden: tuple[Engine, list[GoldenText]]) -> None:
    """No token looks ahead: what follows changes the last token's vector, and not the first one's."""
    engine, _ = golden
    text = made_up_text(min(longest(engine), 700), 1)
    first, first_of_more = embed(engine, [text[:1], text], "cls")
    assert cosine(first, first_of_more) >= same_cosine(engine)
    last, last_of_more = embed(engine, [text[:-50], text], "last")
    assert cosine(last, last_of_more) < 0.99


def test_progress_shows_inside_of_a_long_text(
    golden: tuple[Engine, list[GoldenText]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = golden
    monkeypatch.setattr(_steps, "TOKENS_PER_STEP", 64)
    monkeypatch.setattr(_steps, "NUMBERS_PER_STEP", 0)
    before = engine.steps_done()
    embed(engine, [made_up_text(1100 if isinstance(engine, KernelEngine) else 65, 1)])
    assert engine.steps_done() - before >= 3 + 1


GEOMETRIES: dict[str, dict[str, Any]] = {
    "as small as it gets": {
        "hidden_size": 32,
        "head_dim": 32,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    },
    "one head for all keys": {"num_attention_heads": 6, "num_key_value_heads": 1},
    "a head for every key": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "number of key heads left out": {"num_attention_heads": 3, "num_key_value_heads": None},
    "size of heads left out": {"hidden_size": 128, "num_attention_heads": 2, "head_dim": None},
    "heads wider than the model": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 96},
    "heads that only MLX computes": {"head_dim": 24},
    "a width that only MLX computes": {"hidden_size": 72, "num_attention_heads": 2},
    "an inner width that only MLX computes": {"intermediate_size": 100},
    "with biases": {"attention_bias": True},
    "another base of positions": {"rope_theta": 10_000.0},
    "the base where newer files have it": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000},
    },
    "another epsilon": {"rms_norm_eps": 0.01},
    "many layers": {"num_hidden_layers": 9},
}
STORAGES_ON_ANY_DEVICE = (
    "float16",
    "bfloat16",
    "4 bits in groups of 64",
    "8 bits in groups of 64",
    "4 bits, but one of three matrices plain",
)
STORAGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"dtype": mx.float16},
    "bfloat16": {"dtype": mx.bfloat16},
    "with the prefix": {"prefix": "model."},
    "three files with an index": {"shards": 3},
    "4 bits in groups of 32": {"bits": 4, "group_size": 32},
    "4 bits in groups of 64": {"bits": 4, "group_size": 64, "prefix": "model."},
    "4 bits in groups of 128": {"bits": 4, "group_size": 128, "dtype": mx.float16},
    "8 bits in groups of 64": {"bits": 8, "group_size": 64, "dtype": mx.bfloat16, "shards": 2},
    "2 bits": {"bits": 2, "group_size": 32},
    "3 bits": {"bits": 3, "group_size": 32},
    "5 bits": {"bits": 5, "group_size": 32},
    "6 bits": {"bits": 6, "group_size": 32},
    "4 bits, but one of three matrices plain": {
        "bits": 4,
        "group_size": 64,
        "single": {"layers.0.self_attn.k_proj": None, "layers.1.self_attn.q_proj": (8, 32)},
    },
    "8 bits but for a table of 4": {"bits": 8, "group_size": 32, "single": {"embed_tokens": (4, 64)}},
    "4 bits but for a plain table": {"bits": 4, "group_size": 64, "single": {"embed_tokens": None}},
}


def check_against_reference(checkpoint: Checkpoint, folder: Path, *hows: str) -> None:
    checkpoint.write(folder)
    texts = [made_up_text(length, length, checkpoint.vocabulary) for length in (1, 2, 13, 14, 64, 129, 600)]
    expected = [reference_vector(checkpoint, text) for text in texts]
    for how in hows:
        engine = load(folder, how)
        computed = [text for text in texts if len(text) <= longest(engine)]
        for vector, wanted in zip(embed(engine, computed), expected, strict=False):
            assert cosine(vector, wanted) >= same_cosine(engine), how
    assert all(abs(cosine(a, b)) < 0.99 for a in expected for b in expected if a is not b)


@pytest.mark.device
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_other_geometries_have_the_vectors_of_a_plain_implementation(geometry: str, tmp_path: Path) -> None:
    only_mlx = "only MLX" in geometry
    hows = ("mlx",) if only_mlx else ("kernels", "mlx")
    check_against_reference(Checkpoint(GEOMETRIES[geometry]), tmp_path, *hows)
    if only_mlx:
        assert isinstance(_mlx_engine.load(tmp_path, LONGEST), MlxEngine)


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(name, marks=pytest.mark.device if name in STORAGES_ON_ANY_DEVICE else ())
        for name in STORAGES
    ],
)
def test_other_storages_have_the_vectors_of_a_plain_implementation(storage: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint({"hidden_size": 128, "intermediate_size": 256}, **STORAGES[storage])
    kept = ("kernels, quantized", "mlx, quantized") if "bits" in STORAGES[storage] else ()
    check_against_reference(checkpoint, tmp_path, "kernels", "mlx", *kept)


@pytest.mark.device
def test_attention_in_blocks_is_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint({})
    checkpoint.write(tmp_path)
    texts = [made_up_text(length, length, checkpoint.vocabulary) for length in (50, 48, 50, 300, 7)]
    engine = load(tmp_path, "mlx")
    whole = embed(engine, texts)
    monkeypatch.setattr(_attention, "FUSED_SIZES", ())
    monkeypatch.setattr(_attention, "MOST_SCORES", 1)
    monkeypatch.setattr(_attention, "FEWEST_ROWS", 16)
    monkeypatch.setattr(_attention, "TOKENS_PER_STEP", 200)
    before = engine.steps_done()
    for vector, wanted in zip(embed(engine, texts), whole, strict=True):
        assert cosine(vector, wanted) >= same_cosine(engine)
    assert engine.steps_done() - before > 300 // 16


@pytest.mark.device
def test_the_table_of_words_is_not_dequantized(tmp_path: Path) -> None:
    checkpoint = Checkpoint({}, bits=4, group_size=64)
    checkpoint.write(tmp_path)
    configuration = configurations.read(tmp_path).configuration
    assert isinstance(configuration, configurations.Qwen3Configuration)
    parameters = qwen3.read(configuration, Weights.read(tmp_path))
    words = look_up(parameters.words, mx.array([5, 6]))
    assert words.shape == (2, checkpoint.config["hidden_size"])
    assert words.dtype == mx.float32


@pytest.mark.device
def test_a_text_beyond_the_limit_or_the_vocabulary_is_refused(tmp_path: Path) -> None:
    Checkpoint({}).write(tmp_path)
    for how in ("kernels", "mlx"):
        engine = load(tmp_path, how, 64)
        assert len(embed(engine, [made_up_text(64, 1, 50)])) == 1
        with pytest.raises(BatchError, match="9999"):
            embed(engine, [[9999]])


@pytest.mark.parametrize(("reference_blas", "longest_text"), [("0", 2000), ("1", 120)])
def test_memory_levels_off_over_texts_of_random_length(reference_blas: str, longest_text: int) -> None:
    model = GOLDEN / "tiny-qwen3-4bit"
    growth = memory_growth(model, longest_text, 1, 240, AKIDB_REFERENCE_BLAS=reference_blas)
    assert growth < LARGEST_GROWTH_BYTES
