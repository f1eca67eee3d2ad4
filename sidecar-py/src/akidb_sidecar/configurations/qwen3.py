"""Qwen3. Yang et al. 2025, https://arxiv.org/abs/2505.09388, and Zhang et al. 2025, https://arxiv.org/abs/2506.05176."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import _common, _quantization, _rotary

if TYPE_CHECKING:
    from akidb_sidecar.configurations._quantization import Quantization
    from akidb_sidecar.configurations._values import Values

EVERYWHERE = "full_attention"


@dataclass(frozen=True)
class Qwen3Configuration:
    """The sizes of a decoder, and how its weights are stored."""

    dimension: int
    heads: int
    key_heads: int
    head_size: int
    layers: int
    inner: int
    vocabulary: int
    positions: int
    has_bias: bool
    """Whether the linear layers of attention have one."""
    theta: float
    epsilon: float
    quantization: Quantization | None


def read(values: Values) -> Qwen3Configuration:
    """Read the configuration of a Qwen3."""
    _common.judge(values)
    _common.judge_activation(values, "hidden_act", "silu", "swish")
    _judge_what_tokens_see(values)
    heads = values.size("num_attention_heads")
    key_heads = values.size("num_key_value_heads", heads)
    if heads % key_heads:
        raise ModelError("bad_model", f"{heads} attention heads cannot share {key_heads} heads for keys")
    return Qwen3Configuration(
        dimension=values.size("hidden_size"),
        heads=heads,
        key_heads=key_heads,
        head_size=values.size("head_dim", 128),
        layers=values.size("num_hidden_layers"),
        inner=values.size("intermediate_size"),
        vocabulary=values.size("vocab_size"),
        positions=values.size("max_position_embeddings", 32768),
        has_bias=values.flag("attention_bias", default=False),
        theta=_rotary.base(values, 10_000.0),
        epsilon=values.number("rms_norm_eps", 1e-6),
        quantization=_quantization.read(values),
    )


def _judge_what_tokens_see(values: Values) -> None:
    """Refuse all but every token seeing itself and all tokens before it."""
    if "is_causal" in values and values.get("is_causal") is None:
        raise values.bad("is_causal", "true")  # the reference takes null for false
    for key in ("is_causal", "causal"):
        values.must_be(key, True)
    values.must_be("use_bidirectional_attention", False)
    layers = values.size("num_hidden_layers")
    is_windowed = values.flag("use_sliding_window", default=False)
    window, first = values.get("sliding_window"), values.size("max_window_layers", 28, least=0)
    kinds = values.get("layer_types")
    if kinds is None:
        if is_windowed and first < layers and not ("sliding_window" in values and window is None):
            values.must_be("use_sliding_window", False)
    elif not isinstance(kinds, list) or len(kinds) != layers:
        raise values.bad("layer_types", f"a list of {layers} kinds of layers")
    elif any(kind != EVERYWHERE for kind in kinds):
        values.must_be("layer_types", [EVERYWHERE] * layers)
