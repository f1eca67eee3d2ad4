"""What ``config.json`` says of each family: forms that are read alike, and what is refused."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from conftest import TESTS, cosine, same_cosine
from tiny_families import FAMILIES, copy, embed, golden, read_config, tensors_of

from akidb_sidecar import _mlx_engine
from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import FAMILIES as READ
from akidb_sidecar.configurations import nomic_bert

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.mlx


def refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as refused:
        _mlx_engine.load(folder, 16)
    assert len(refused.value.message.splitlines()) == 1
    return refused.value


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
        ({"sliding_window": 8}, True),
        ({"sliding_window": 8, "local_attention": 4}, True),
        ({"sliding_window": 16}, False),
        ({"rope_scaling": {"rope_theta": 100.0}}, False),
        ({"hidden_activation": "gelu_python"}, True),
    ],
    ids=str,
)
def test_modernbert_reads_older_and_newer_configurations(
    changes: dict[str, object], is_same: bool, tmp_path: Path
) -> None:
    engine = _mlx_engine.load(copy("tiny-modernbert", tmp_path, changes), 1024)
    text = golden("tiny-modernbert")[-1]
    (vector,) = embed(engine, [text.token_ids], "cls")
    assert (cosine(vector, text.vectors["cls"]) >= same_cosine(engine)) is is_same


def test_null_for_the_local_theta_of_modernbert_is_the_global_one(tmp_path: Path) -> None:
    vectors = []
    for name, theta in (("null", None), ("number", 160_000.0)):
        folder = copy("tiny-modernbert", tmp_path / name, {**OLDER_MODERNBERT, "local_rope_theta": theta})
        if theta is None:
            config = {**read_config(folder), "local_rope_theta": None}
            (folder / "config.json").write_text(json.dumps(config))
        vectors += embed(_mlx_engine.load(folder, 1024), [[5, 6, 7, 8] * 20], "cls")
    assert list(vectors[0]) == pytest.approx(list(vectors[1]), abs=1e-5)


@pytest.mark.parametrize(("theta", "is_same"), [(1000.0, True), (None, True), (10.0, False)])
def test_nomic_bert_reads_older_configurations(theta: float | None, is_same: bool, tmp_path: Path) -> None:
    newer = read_config(TESTS / "golden" / "tiny-nomic-bert")
    names = nomic_bert.OLDER_KEYS
    older = {name: newer[key] for name, key in names.items()}
    others = {
        "activation_function": "swiglu",
        "causal": False,
        "prenorm": False,
        "rotary_emb_base": theta,
        "rotary_emb_fraction": 1.0,
        "rotary_scaling_factor": None,
    }
    gone = dict.fromkeys([*names.values(), "rope_parameters", "hidden_act", "head_dim"])
    engine = _mlx_engine.load(copy("tiny-nomic-bert", tmp_path, {**gone, **older, **others}), 1024)
    text = golden("tiny-nomic-bert")[-1]
    (vector,) = embed(engine, [text.token_ids], "cls")
    assert (cosine(vector, text.vectors["cls"]) >= same_cosine(engine)) is is_same


@pytest.mark.parametrize(
    ("family", "changes", "is_same"),
    [
        ("tiny-bert", {"hidden_act": "gelu_python"}, True),
        ("tiny-xlm-roberta", {"hidden_act": "gelu_python"}, True),
        ("tiny-nomic-bert", {"hidden_act": "swish"}, True),
        ("tiny-nomic-bert", {"rope_parameters": None, "rope_theta": 1000.0}, True),
        ("tiny-nomic-bert", {"rope_parameters": None, "rope_theta": 100.0}, False),
        ("tiny-nomic-bert", {"rope_parameters": None, "rope_theta": 1000, "rotary_emb_base": 5}, True),
        ("tiny-nomic-bert", {"rope_scaling": {"rope_theta": 100.0}}, False),
    ],
    ids=str,
)
def test_other_names_for_the_same_are_obeyed(
    family: str, changes: dict[str, object], is_same: bool, tmp_path: Path
) -> None:
    engine = _mlx_engine.load(copy(family, tmp_path, changes), 128)
    text = golden(family)[0]
    (vector,) = embed(engine, [text.token_ids], "cls")
    assert (cosine(vector, text.vectors["cls"]) >= same_cosine(engine)) is is_same


def test_a_type_that_is_not_supported_is_refused_with_those_that_are_in_order(tmp_path: Path) -> None:
    message = refusal(copy("tiny-bert", tmp_path, {"model_type": "gpt2"})).message
    names = message.partition("supported are ")[2].replace("`", "").split(", ")
    assert names == sorted(READ)
    assert {"bert", "camembert", "modernbert", "nomic_bert", "qwen3", "roberta", "xlm-roberta"} <= set(names)


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
    "tiny-nomic-bert": {
        **dict.fromkeys(SIZES, BAD_SIZES),
        "num_attention_heads": (*BAD_SIZES, 48, 7),
        "head_dim": (*BAD_SIZES, 8),
        "type_vocab_size": BAD_SIZES,
        "layer_norm_eps": BAD_NUMBERS,
        "rotary_emb_base": BAD_NUMBERS,
        "rotary_emb_fraction": (*BAD_NUMBERS, 0.5),
        "hidden_act": ("gelu", 1, ["silu"]),
        "activation_function": ("gelu", "relu", 1),
        "rope_parameters": (
            "default",
            [1],
            {"rope_type": "dynamic", "factor": 2.0},
            *({"rope_theta": value} for value in BAD_NUMBERS),
        ),
        **dict.fromkeys(nomic_bert.FLAGS_FOR_OTHER_NETWORKS, (True, "no", 0)),
        **dict.fromkeys((*nomic_bert.KEYS_FOR_OTHER_NETWORKS, "num_experts", "rope_scaling"), (2, "x")),
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


@pytest.mark.parametrize("value", BAD_SIZES)
def test_an_odd_period_of_older_modernberts_is_refused(value: object, tmp_path: Path) -> None:
    changes = {**OLDER_MODERNBERT, "global_attn_every_n_layers": value}
    assert "global_attn_every_n_layers" in refusal(copy("tiny-modernbert", tmp_path, changes)).message


REQUIRED = [
    *(("tiny-bert", key) for key in (*SIZES, "type_vocab_size")),
    *(("tiny-modernbert", key) for key in SIZES if key != "max_position_embeddings"),
    *(("tiny-nomic-bert", key) for key in (*SIZES, "type_vocab_size") if key != "max_position_embeddings"),
    *(("tiny-xlm-roberta", key) for key in (*SIZES, "type_vocab_size")),
]


@pytest.mark.parametrize(("family", "key"), REQUIRED)
def test_a_missing_size_is_refused(family: str, key: str, tmp_path: Path) -> None:
    assert refusal(copy(family, tmp_path, {key: None})).code == "bad_model"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_says_how_long_a_text_may_be_however_long_it_was_told(family: str, tmp_path: Path) -> None:
    folder = copy(family, tmp_path, {})
    positions = read_config(folder)["max_position_embeddings"]
    told = [_mlx_engine.load(folder, max_tokens).info.max_tokens for max_tokens in (16, 1 << 20)]
    assert told[0] == 16
    assert told[1] == positions - (2 if family == "tiny-xlm-roberta" else 0)


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
