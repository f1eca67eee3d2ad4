"""Small Qwen3 checkpoints with random weights, and the plainest implementation that gives their vectors."""

from __future__ import annotations

import json
from array import array
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIG = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "vocab_size": 50,
}


class Checkpoint:
    """A configuration and its tensors, as they are stored and as the numbers that they stand for."""

    def __init__(
        self,
        changes: dict[str, Any],
        *,
        dtype: mx.Dtype = mx.float32,
        bits: int | None = None,
        group_size: int = 64,
        single: dict[str, tuple[int, int] | None] | None = None,
        prefix: str = "",
        shards: int = 1,
    ) -> None:
        """``single`` has bits and group size of single matrices, or ``None`` where they are plain."""
        self.config: dict[str, Any] = {**CONFIG, **changes}
        self.config = {key: value for key, value in self.config.items() if value is not None}
        self._dtype, self._prefix, self._shards = dtype, prefix, shards
        self._layout = None if bits is None else (bits, group_size)
        self._single = single or {}
        if bits is not None:
            self.config["quantization"] = {"bits": bits, "group_size": group_size}
            for name, layout in self._single.items():
                entry = layout and {"bits": layout[0], "group_size": layout[1]}
                self.config["quantization"][prefix + name] = entry or False
        self.vocabulary: int = self.config["vocab_size"]
        self.heads: int = self.config["num_attention_heads"]
        self.key_heads: int = self.config.get("num_key_value_heads", self.heads)
        self.head_size: int = self.config.get("head_dim", 128)
        self.stored: dict[str, mx.array] = {}
        self.values: dict[str, mx.array] = {}
        self._key = mx.random.key(3)
        self._make()

    def write(self, folder: Path) -> None:
        """Write configuration and weights."""
        (folder / "config.json").write_text(json.dumps(self.config))
        names = sorted(self.stored)
        if self._shards == 1:
            mx.save_safetensors(str(folder / "model.safetensors"), self.stored)
            return
        weight_map: dict[str, str] = {}
        for shard in range(self._shards):
            file = f"model-{shard + 1:05}-of-{self._shards:05}.safetensors"
            part = {name: self.stored[name] for name in names[shard :: self._shards]}
            mx.save_safetensors(str(folder / file), part)
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def _make(self) -> None:
        width, inner = self.config["hidden_size"], self.config["intermediate_size"]
        query, key = self.heads * self.head_size, self.key_heads * self.head_size
        self._matrix("embed_tokens", self.vocabulary, width)
        self._row("norm.weight", width, 1)
        for layer in range(self.config["num_hidden_layers"]):
            at = f"layers.{layer}."
            for name, outputs, inputs in (
                ("self_attn.q_proj", query, width),
                ("self_attn.k_proj", key, width),
                ("self_attn.v_proj", key, width),
                ("self_attn.o_proj", width, query),
                ("mlp.gate_proj", inner, width),
                ("mlp.up_proj", inner, width),
                ("mlp.down_proj", width, inner),
            ):
                self._matrix(at + name, outputs, inputs)
                if self.config["attention_bias"] and name.startswith("self_attn"):
                    self._row(f"{at}{name}.bias", outputs, 0)
            for name, count in (
                ("input_layernorm", width),
                ("post_attention_layernorm", width),
                ("self_attn.q_norm", self.head_size),
                ("self_attn.k_norm", self.head_size),
            ):
                self._row(f"{at}{name}.weight", count, 1)

    def _random(self, *shape: int) -> mx.array:
        self._key, now = mx.random.split(self._key)
        return mx.random.normal(shape, key=now)

    def _row(self, name: str, count: int, middle: float) -> None:
        stored = (middle + 0.3 * self._random(count)).astype(self._dtype)
        self.stored[self._prefix + name] = stored
        self.values[name] = stored.astype(mx.float32)

    def _matrix(self, name: str, outputs: int, inputs: int) -> None:
        matrix = (self._random(outputs, inputs) / inputs**0.5).astype(self._dtype)
        full_name = self._prefix + name
        layout = self._single.get(name, self._layout)
        if layout is None:
            self.stored[f"{full_name}.weight"] = matrix
            self.values[f"{name}.weight"] = matrix.astype(mx.float32)
            return
        bits, group_size = layout
        weight, scales, biases = mx.quantize(matrix, group_size=group_size, bits=bits)
        self.stored |= {
            f"{full_name}.weight": weight,
            f"{full_name}.scales": scales,
            f"{full_name}.biases": biases,
        }
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        self.values[f"{name}.weight"] = mx.dequantize(weight, scales, biases, group_size, bits)


def reference_vector(checkpoint: Checkpoint, token_ids: Sequence[int]) -> array[float]:
    """Return the vector of the last token of one text, computed head by head with a mask of all pairs."""
    values, config = checkpoint.values, checkpoint.config
    length, size = len(token_ids), checkpoint.head_size
    positions = config.get("rope_parameters") or config
    speeds = positions["rope_theta"] ** (-mx.arange(0, size, 2) / size)
    angles = mx.arange(length)[:, None] * mx.concatenate([speeds, speeds])
    hidden = mx.where(mx.arange(length)[None] > mx.arange(length)[:, None], -mx.inf, 0)

    def norm(x: mx.array, name: str) -> mx.array:
        square = mx.mean(x * x, axis=-1, keepdims=True)
        return x / mx.sqrt(square + config["rms_norm_eps"]) * values[f"{name}.weight"]

    def linear(x: mx.array, name: str) -> mx.array:
        return x @ values[f"{name}.weight"].T + values.get(f"{name}.bias", 0)

    def turned(x: mx.array) -> mx.array:
        swapped = mx.concatenate([-x[:, size // 2 :], x[:, : size // 2]], axis=1)
        return x * mx.cos(angles) + swapped * mx.sin(angles)

    x = values["embed_tokens.weight"][mx.array(list(token_ids))]
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        normed = norm(x, f"{at}input_layernorm")
        query, key, value = (linear(normed, f"{at}self_attn.{name}_proj") for name in "qkv")
        mixed = []
        for head in range(checkpoint.heads):
            mine = slice(head * size, (head + 1) * size)
            shared = head // (checkpoint.heads // checkpoint.key_heads)
            theirs = slice(shared * size, (shared + 1) * size)
            q = turned(norm(query[:, mine], f"{at}self_attn.q_norm"))
            k = turned(norm(key[:, theirs], f"{at}self_attn.k_norm"))
            mixed.append(mx.softmax(q @ k.T / size**0.5 + hidden, axis=-1) @ value[:, theirs])
        x = x + linear(mx.concatenate(mixed, axis=1), f"{at}self_attn.o_proj")
        normed = norm(x, f"{at}post_attention_layernorm")
        gate = linear(normed, f"{at}mlp.gate_proj")
        x = x + linear(gate / (1 + mx.exp(-gate)) * linear(normed, f"{at}mlp.up_proj"), f"{at}mlp.down_proj")
    last: Any = norm(x, "norm")[-1].tolist()
    return array("f", last)
