"""Qwen3 checkpoints that cannot be right: each is refused with one line that says what is wrong."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import pack
from qwen3_checkpoint import Checkpoint

from akidb_sidecar import _mlx_engine
from akidb_sidecar._engine import Batch
from akidb_sidecar._errors import ModelError

pytestmark = pytest.mark.mlx

INDEX = "model.safetensors.index.json"
ROWS = ("norm.weight", "layers.0.input_layernorm.weight", "layers.0.self_attn.k_norm.weight")
MATRICES = (
    "layers.0.self_attn.q_proj.weight",
    "layers.1.self_attn.k_proj.weight",
    "layers.1.mlp.gate_proj.weight",
)


def refusal(folder: Path, code: str = "bad_model") -> str:
    with pytest.raises(ModelError) as refused:
        _mlx_engine.load(folder, 128)
    assert refused.value.code == code, refused.value.message
    assert len(refused.value.message.splitlines()) == 1
    return refused.value.message


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    Checkpoint({}).write(tmp_path)
    return tmp_path


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    Checkpoint({}, bits=4, group_size=32).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "64", True, 1 << 40, [64]])
@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    ],
)
def test_a_size_that_is_none_is_refused(plain: Path, key: str, value: object) -> None:
    change_config(plain, **{key: value})
    assert f"`{key}`" in refusal(plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_dim", 63),
        ("head_dim", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 4),
        ("num_hidden_layers", 3),
        ("vocab_size", 51),
        ("hidden_size", 128),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", -1),
        ("rope_theta", float("inf")),
        ("rope_theta", 0),
        ("max_position_embeddings", "many"),
        ("attention_bias", True),
        ("attention_bias", "no"),
        ("rope_parameters", [1]),
    ],
)
def test_an_odd_value_is_refused(plain: Path, key: str, value: object) -> None:
    change_config(plain, **{key: value})
    assert refusal(plain)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "`gelu`"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "`use_sliding_window`"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "`layer_types`"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "`yarn`"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "`linear`"),
        ({"rope_parameters": {}, "rope_scaling": {"rope_type": "yarn"}}, "`yarn`"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "`rope_parameters`"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor`"),
        ({"is_causal": False}, "`is_causal`"),
        ({"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
        ({"auto_map": {"AutoModel": "modeling.Qwen3Model"}}, "`auto_map`"),
        ({"model_type": "qwen9"}, "supported are `bert`"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(plain: Path, changes: dict[str, Any], named: str) -> None:
    change_config(plain, **changes)
    assert named in refusal(plain, "unsupported_model")


@pytest.mark.parametrize(
    ("quantization", "code", "named"),
    [
        (None, "bad_model", "does not say how"),
        ([], "bad_model", "does not say how"),
        ([1], "bad_model", "an object"),
        ({}, "bad_model", "does not say how"),
        ({"bits": 4}, "unsupported_model", "groups of None"),
        ({"bits": 7, "group_size": 32}, "unsupported_model", "7 bits"),
        ({"bits": True, "group_size": 32}, "unsupported_model", "True bits"),
        ({"bits": "4", "group_size": 32}, "unsupported_model", "4 bits"),
        ({"bits": 4, "group_size": 16}, "unsupported_model", "groups of 16"),
        ({"bits": [4], "group_size": {}}, "unsupported_model", "groups of {}"),
        ({"bits": 8, "group_size": 32}, "bad_model", "has shape"),
        ({"bits": 4, "group_size": 64}, "bad_model", "has shape"),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "unsupported_model", "`mxfp4`"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "unsupported_model", "`gptq`"),
        ({"bits": 4, "group_size": 32, "embed_tokens": {"bits": 3}}, "bad_model", "`embed_tokens.weight`"),
    ],
)
def test_odd_quantizations_are_refused(quantized: Path, quantization: object, code: str, named: str) -> None:
    change_config(quantized, quantization=quantization)
    assert named in refusal(quantized, code)


@pytest.mark.parametrize("part", ["weight", "biases"])
def test_a_quantized_matrix_needs_all_of_its_parts(quantized: Path, part: str) -> None:
    file = quantized / "model.safetensors"
    tensors: Any = mx.load(str(file))
    del tensors[f"layers.1.mlp.up_proj.{part}"]
    mx.save_safetensors(str(file), tensors)
    assert f"no tensor `layers.1.mlp.up_proj.{part}`" in refusal(quantized)


@pytest.mark.parametrize(
    ("part", "dtype"), [("weight", mx.int32), ("weight", mx.float32), ("scales", mx.uint32)]
)
def test_a_quantized_matrix_of_other_types_is_refused(quantized: Path, part: str, dtype: mx.Dtype) -> None:
    file = quantized / "model.safetensors"
    tensors: Any = mx.load(str(file))
    name = f"layers.1.mlp.up_proj.{part}"
    tensors[name] = tensors[name].astype(dtype)
    mx.save_safetensors(str(file), tensors)
    assert f"tensor `{name}` holds" in refusal(quantized)


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    Checkpoint({}, shards=3).write(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert f"no `model-00002-of-00003.safetensors`, which `{INDEX}` names" in refusal(tmp_path)


def test_a_cut_file_of_several_is_named(tmp_path: Path) -> None:
    Checkpoint({}, shards=3).write(tmp_path)
    file = tmp_path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "`model-00002-of-00003.safetensors` is damaged" in refusal(tmp_path)


def test_files_that_the_index_does_not_name_are_left_alone(tmp_path: Path) -> None:
    Checkpoint({}, shards=2).write(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"something else")
    assert _mlx_engine.load(tmp_path, 128).info.dimension == 64


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": []}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "/etc/model.safetensors"}}',
        '{"weight_map": {"a": "pytorch_model.bin"}}',
        '{"weight_map": {"a": "nothing.safetensors"}}',
    ],
)
def test_an_index_that_is_none_is_refused_unless_there_is_a_whole_file(plain: Path, index: str) -> None:
    (plain / INDEX).write_text(index)
    assert _mlx_engine.load(plain, 128).info.dimension == 64
    (plain / "model.safetensors").rename(plain / "model-1.safetensors")
    assert f"`{INDEX}`" in refusal(plain)


def test_a_flipped_bit_of_the_header_is_refused_or_changes_nothing(plain: Path) -> None:
    file = plain / "model.safetensors"
    intact = file.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", intact)
    batch = Batch(*pack([[1, 2, 3], [4]]), pooling="last")
    expected = bytes(_mlx_engine.load(plain, 128).embed(batch))
    generator = random.Random(6)  # noqa: S311 - repeatable
    refused = 0
    for _ in range(400):
        damaged = bytearray(intact)
        damaged[generator.randrange(8 + header_bytes)] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            engine = _mlx_engine.load(plain, 128)
        except ModelError as error:
            refused += error.code == "bad_model" and len(error.message.splitlines()) == 1
        else:
            assert bytes(engine.embed(batch)) == expected
    assert refused > 300


def test_of_two_files_without_a_whole_one_neither_is_preferred(plain: Path) -> None:
    content = (plain / "model.safetensors").read_bytes()
    (plain / "model.safetensors").rename(plain / "a.safetensors")
    (plain / "b.safetensors").write_bytes(content)
    assert re.search("`b.safetensors` has the tensor `.*` for a second time", refusal(plain))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [*ROWS, *MATRICES])
def test_a_number_that_is_not_finite_is_refused(plain: Path, name: str, number: str) -> None:
    """The warm-up finds it, wherever it is: no worker becomes ready that cannot answer."""
    from akidb_sidecar import _worker  # noqa: PLC0415 - it is needed here alone

    file = plain / "model.safetensors"
    tensors: Any = mx.load(str(file))
    tensors[name][..., 3] = float(number)
    mx.save_safetensors(str(file), tensors)
    with pytest.raises(ModelError, match="warm-up"):
        _worker._warm_up(_mlx_engine.load(plain, 128))
