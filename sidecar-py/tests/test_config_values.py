"""A model whose ``config.json`` holds odd values is refused with one line, before it can do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from akidb_sidecar import _mlx_engine
from akidb_sidecar._errors import ModelError

pytestmark = pytest.mark.mlx


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "384"),
        ("hidden_size", None),
        ("hidden_size", 385),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_hidden_layers", "six"),
        ("num_hidden_layers", 7),
        ("layer_norm_eps", "small"),
        ("vocab_size", 10),
        ("hidden_act", "relu"),
        ("model_type", ["bert"]),
        ("model_type", None),
    ],
)
def test_an_odd_value_is_refused(minilm_path: Path, tmp_path: Path, key: str, value: object) -> None:
    config = json.loads((minilm_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    (tmp_path / "model.safetensors").symlink_to(minilm_path / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        _mlx_engine.load(tmp_path, 256)
    assert refused.value.code in ("bad_model", "unsupported_model")
    assert len(refused.value.message.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, "{"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        _mlx_engine.load(tmp_path, 256)
    assert refused.value.code == "bad_model"
