"""Families of models against ``transformers``: tiny checkpoints of ``scripts/parity``, on each engine."""

from __future__ import annotations

import json
import math
import random
from array import array
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import pytest
from conftest import TESTS, cosine, pack, rows

from akidb_sidecar import _mlx_engine
from akidb_sidecar._engine import Batch, Engine, Pooling
from akidb_sidecar._errors import BatchError, ModelError
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import _registry

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.mlx

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
SAME_COSINE = 0.99999
LONGEST_TEXT = {"tiny-bert": 128, "tiny-modernbert": 1024, "tiny-xlm-roberta": 128}
IN_KERNELS = ("tiny-xlm-roberta",)
PREFIXES = {"tiny-bert": "bert.", "tiny-modernbert": "model.", "tiny-xlm-roberta": "roberta."}
FAMILIES = tuple(LONGEST_TEXT)


@dataclass(frozen=True)
class Text:
    """A text and its vectors, not normalised."""

    token_ids: list[int]
    vectors: dict[str, list[float]]


@cache
def golden(family: str) -> list[Text]:
    cases: list[dict[str, Any]] = json.loads((TESTS / "golden" / family / "golden.json").read_text())["cases"]
    return [Text(case["token_ids"], {pooling: case[pooling] for pooling in POOLINGS}) for case in cases]


@cache
def engine_of(family: str, kind: str) -> Engine:
    """Return what computes the family by itself, or MLX; no engine keeps state between batches."""
    folder = TESTS / "golden" / family
    if kind == "chosen":
        return _mlx_engine.load(folder, LONGEST_TEXT[family])
    return in_mlx(folder, LONGEST_TEXT[family])


def in_mlx(folder: Path, max_tokens: int) -> MlxEngine:
    """Have MLX compute what the kernels could."""
    config = read_config(folder)
    parameters = _registry.READERS[config["model_type"]](config, Weights.read(folder))
    model = parameters.model(keep_quantized=False)
    return MlxEngine(model, config["model_type"], max_tokens)


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def embed(
    engine: Engine, texts: Sequence[Sequence[int]], pooling: Pooling = "mean", threads: int = 1
) -> list[array[float]]:
    lengths, token_ids = pack(texts)
    return rows(array("f", bytes(engine.embed(Batch(lengths, token_ids, pooling, threads)))), len(texts))


def copy(
    family: str, folder: Path, changes: dict[str, object], tensors: dict[str, mx.array] | None = None
) -> Path:
    """Make a checkpoint that differs; a value of ``None`` takes its key out."""
    source = TESTS / "golden" / family
    folder.mkdir(exist_ok=True)
    config = {**read_config(source), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    if tensors is None:
        (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    else:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def tensors_of(family: str) -> dict[str, mx.array]:
    loaded = mx.load(str(TESTS / "golden" / family / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as refused:
        _mlx_engine.load(folder, 16)
    assert len(refused.value.message.splitlines()) == 1
    return refused.value


ENGINES = [*((family, "chosen") for family in FAMILIES), *((family, "mlx") for family in IN_KERNELS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_compute_what_fits_them(family: str) -> None:
    engine = engine_of(family, "chosen")
    assert isinstance(engine, KernelEngine if family in IN_KERNELS else MlxEngine)
    assert engine.info.warnings == ()
    assert engine.info.model_type == read_config(TESTS / "golden" / family)["model_type"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_single_texts_have_the_golden_vectors(family: str, kind: str, pooling: Pooling) -> None:
    for text in golden(family):
        (vector,) = embed(engine_of(family, kind), [text.token_ids], pooling)
        assert cosine(vector, text.vectors[pooling]) >= SAME_COSINE
        assert list(vector) == pytest.approx(text.vectors[pooling], abs=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_batched_texts_have_the_golden_vectors(family: str, kind: str, pooling: Pooling) -> None:
    for seed in range(3):
        texts = golden(family) * (1 + seed % 2)
        random.Random(seed).shuffle(texts)  # noqa: S311 - repeatable
        vectors = embed(engine_of(family, kind), [text.token_ids for text in texts], pooling)
        for text, vector in zip(texts, vectors, strict=True):
            assert cosine(vector, text.vectors[pooling]) >= SAME_COSINE


@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_a_batch_of_texts_of_every_length_gives_the_vectors_of_single_ones(family: str, kind: str) -> None:
    engine, words = engine_of(family, kind), golden(family)[-1].token_ids
    texts = [words[:length] for length in (*range(1, 1 + min(len(words), 129)), 300, 555, 800)]
    random.Random(1).shuffle(texts)  # noqa: S311 - repeatable
    for start in range(0, len(texts), 64):
        batch = texts[start : start + 64]
        for text, vector in zip(batch, embed(engine, batch), strict=True):
            (single,) = embed(engine, [text])
            assert cosine(vector, single) >= SAME_COSINE


@pytest.mark.parametrize(("family", "kind"), ENGINES)
def test_the_longest_text_is_computed_and_a_longer_one_refused(family: str, kind: str) -> None:
    engine, longest = engine_of(family, kind), LONGEST_TEXT[family]
    embed(engine, [[5] * longest])
    with pytest.raises(BatchError):
        embed(engine, [[5] * (longest + 1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_names_may_have_the_prefix_of_a_model_with_a_head(family: str, tmp_path: Path) -> None:
    tensors = {PREFIXES[family] + name: tensor for name, tensor in tensors_of(family).items()}
    engine = _mlx_engine.load(copy(family, tmp_path, {}, tensors), LONGEST_TEXT[family])
    for text in golden(family):
        (vector,) = embed(engine, [text.token_ids])
        assert cosine(vector, text.vectors["mean"]) >= SAME_COSINE


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_any_floating_type_are_computed_in_the_type_of_the_device(
    family: str, dtype: mx.Dtype, tmp_path: Path
) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of(family).items()}
    engine = _mlx_engine.load(copy(family, tmp_path, {}, tensors), LONGEST_TEXT[family])
    assert engine.info.dtype == ("float32" if engine.info.device == "cpu" else str(dtype)[9:])
    for text in golden(family)[:4]:
        (vector,) = embed(engine, [text.token_ids])
        assert cosine(vector, text.vectors["mean"]) >= (0.999 if dtype == mx.bfloat16 else SAME_COSINE)


@pytest.mark.parametrize("name", ["roberta", "camembert"])
def test_kin_of_xlm_roberta_are_computed_alike(name: str, tmp_path: Path) -> None:
    engine = _mlx_engine.load(copy("tiny-xlm-roberta", tmp_path, {"model_type": name}), 128)
    assert engine.info.model_type == name
    text = golden("tiny-xlm-roberta")[-1]
    (vector,) = embed(engine, [text.token_ids])
    assert cosine(vector, text.vectors["mean"]) >= SAME_COSINE


def test_long_texts_are_computed_by_mlx_as_by_the_kernels(tmp_path: Path) -> None:
    longest = 1500
    tensors = tensors_of("tiny-xlm-roberta")
    positions = mx.random.normal((longest + 2, 64), key=mx.random.key(1)) * 0.5
    tensors["embeddings.position_embeddings.weight"] = positions
    folder = copy("tiny-xlm-roberta", tmp_path, {"max_position_embeddings": longest + 2}, tensors)
    kernels, mlx = _mlx_engine.load(folder, longest), in_mlx(folder, longest)
    texts = [[5 + (place * place) % 150 for place in range(length)] for length in (7, longest, 513, 560, 1)]
    before = mlx.steps_done()
    for ours, theirs in zip(embed(kernels, texts, "cls"), embed(mlx, texts, "cls"), strict=True):
        assert cosine(ours, theirs) >= SAME_COSINE
    assert mlx.steps_done() - before > read_config(folder)["num_hidden_layers"]


OLDER_MODERNBERT = {
    "layer_types": None,
    "rope_parameters": None,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        (OLDER_MODERNBERT, True),
        (dict.fromkeys(OLDER_MODERNBERT), True),
        ({**OLDER_MODERNBERT, "global_attn_every_n_layers": 2}, False),
        ({**OLDER_MODERNBERT, "global_attn_every_n_layers": 1}, False),
        ({**OLDER_MODERNBERT, "global_rope_theta": 100.0}, False),
        ({**OLDER_MODERNBERT, "local_rope_theta": 100.0}, False),
        ({"rope_parameters": {"full_attention": {"rope_theta": 100.0}}}, False),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 100.0}}}, False),
        ({"layer_types": ["full_attention"] * 4}, False),
        ({"local_attention": 18}, False),
        ({"local_attention": 14}, False),
        ({"local_attention": 17}, True),
    ],
    ids=str,
)
def test_modernbert_reads_older_and_newer_configurations(
    changes: dict[str, object], is_same: bool, tmp_path: Path
) -> None:
    engine = _mlx_engine.load(copy("tiny-modernbert", tmp_path, changes), 1024)
    text = golden("tiny-modernbert")[-1]
    (vector,) = embed(engine, [text.token_ids], "cls")
    assert (cosine(vector, text.vectors["cls"]) >= SAME_COSINE) is is_same


def test_null_for_the_local_theta_of_modernbert_is_the_global_one(tmp_path: Path) -> None:
    vectors = []
    for name, theta in (("null", None), ("number", 160_000.0)):
        folder = copy("tiny-modernbert", tmp_path / name, {**OLDER_MODERNBERT, "local_rope_theta": theta})
        if theta is None:
            config = {**read_config(folder), "local_rope_theta": None}
            (folder / "config.json").write_text(json.dumps(config))
        vectors += embed(_mlx_engine.load(folder, 1024), [[5, 6, 7, 8] * 20], "cls")
    assert list(vectors[0]) == pytest.approx(list(vectors[1]), abs=1e-5)


def test_positions_begin_behind_the_padding_token(tmp_path: Path) -> None:
    engine = _mlx_engine.load(copy("tiny-xlm-roberta", tmp_path, {"pad_token_id": 9}), 128)
    embed(engine, [[5] * 120])
    with pytest.raises(BatchError):
        embed(engine, [[5] * 121])


def test_a_type_that_is_not_supported_is_refused_with_those_that_are_in_order(tmp_path: Path) -> None:
    message = refusal(copy("tiny-bert", tmp_path, {"model_type": "gpt2"})).message
    names = message.partition("supported are ")[2].replace("`", "").split(", ")
    assert names == sorted(_registry.READERS)
    assert {"bert", "camembert", "modernbert", "qwen3", "roberta", "xlm-roberta"} <= set(names)


SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
BAD_SIZES: tuple[object, ...] = (0, -1, 1.5, 64.0, "64", True, [64], 10**30)
BAD_NUMBERS: tuple[object, ...] = (0, -1e-5, "small", True, [1], math.nan, math.inf)
BAD_VALUES: dict[str, dict[str, tuple[object, ...]]] = {
    "tiny-bert": {
        **dict.fromkeys(SIZES, BAD_SIZES),
        "type_vocab_size": BAD_SIZES,
        "layer_norm_eps": BAD_NUMBERS,
        "hidden_act": ("relu", 1, ["gelu"]),
        "position_embedding_type": ("relative_key", 1),
    },
    "tiny-modernbert": {
        **dict.fromkeys(SIZES, BAD_SIZES),
        "num_attention_heads": (*BAD_SIZES, 64, 7),
        "local_attention": BAD_SIZES,
        "norm_eps": BAD_NUMBERS,
        "norm_bias": (True, "no", 0),
        "attention_bias": (True, "no", 0),
        "mlp_bias": (True, "no", 0),
        "hidden_activation": ("relu", 1, ["gelu"]),
        "layer_types": (
            "full_attention",
            ["full_attention"] * 3,
            ["full_attention"] * 5,
            [1] * 4,
            [[]] * 4,
            {},
        ),
        "rope_parameters": (
            "default",
            [1],
            {"rope_theta": 10_000.0},
            {"full_attention": 10_000.0},
            *({"full_attention": {"rope_theta": value}} for value in BAD_NUMBERS),
            *({"sliding_attention": {"rope_theta": value}} for value in BAD_NUMBERS),
            {"full_attention": {"rope_type": "yarn"}},
            {"sliding_attention": {"rope_type": ["default"]}},
        ),
        "rope_scaling": ({"type": "linear", "factor": 2.0}, 1),
        "global_rope_theta": BAD_NUMBERS,
        "local_rope_theta": BAD_NUMBERS,
    },
    "tiny-xlm-roberta": {
        **dict.fromkeys(SIZES, BAD_SIZES),
        "type_vocab_size": BAD_SIZES,
        "pad_token_id": (-1, 129, 130, 10**30, 1.0, "1", True, [1]),
        "layer_norm_eps": BAD_NUMBERS,
        "hidden_act": ("gelu_new", 1),
    },
}


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        (family, key, value)
        for family, keys in BAD_VALUES.items()
        for key, values in keys.items()
        for value in values
    ],
)
def test_an_odd_value_is_refused(family: str, key: str, value: object, tmp_path: Path) -> None:
    assert refusal(copy(family, tmp_path, {key: value})).code in ("bad_model", "unsupported_model")


REQUIRED = [
    *(("tiny-bert", key) for key in (*SIZES, "type_vocab_size")),
    *(("tiny-modernbert", key) for key in SIZES if key != "max_position_embeddings"),
    *(("tiny-xlm-roberta", key) for key in (*SIZES, "type_vocab_size")),
]


@pytest.mark.parametrize(("family", "key"), REQUIRED)
def test_a_missing_size_is_refused(family: str, key: str, tmp_path: Path) -> None:
    assert refusal(copy(family, tmp_path, {key: None})).code == "bad_model"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_needed_and_must_have_its_shape(family: str, tmp_path: Path) -> None:
    whole = tensors_of(family)
    for number, name in enumerate(whole):
        for change in ("missing", "longer"):
            tensors = dict(whole)
            tensor = tensors.pop(name)
            if change == "longer":
                tensors[name] = mx.concatenate([tensor, tensor[:1]])
            folder = copy(family, tmp_path / f"{number}-{change}", {}, tensors)
            assert f"`{name}`" in refusal(folder).message
