"""Qwen3, the decoder behind Qwen3-Embedding: the last token has seen all of its text and speaks for it.

Yang et al. 2025, https://arxiv.org/abs/2505.09388, and Zhang et al. 2025, https://arxiv.org/abs/2506.05176.
Layers of causal attention with grouped heads and rotary positions, and of a gated feed-forward, each after a
root-mean-square norm and with a residual; the queries and keys of every head are normed, too. Linear layers
run over the real tokens of all texts at once; only attention knows texts (see ``_attention``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._buffers import halves
from akidb_sidecar._quantization import QuantizedMatrix, look_up
from akidb_sidecar.models._attention import PackedAttention, Scope
from akidb_sidecar.models._functions import added, silu_gated
from akidb_sidecar.models._linear import Linear
from akidb_sidecar.models._rotary import Rotary, positions_of, turn_weighted
from akidb_sidecar.models._steps import after_layer

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._quantization import Matrix
    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import Qwen3Configuration
    from akidb_sidecar.models._linear import Precision
    from akidb_sidecar.models._rotary import Angles


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one layer, as they are stored."""

    attention_norm: mx.array
    query: Linear
    key: Linear
    value: Linear
    query_norm: mx.array
    key_norm: mx.array
    attention_output: Linear
    feed_forward_norm: mx.array
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Parameters:
    """The tensors of the decoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: Matrix
    layers: list[LayerParameters]
    norm: mx.array
    heads: int
    key_heads: int
    head_size: int
    inner: int
    epsilon: float
    theta: float
    vocabulary: int
    dimension: int
    longest_text: int

    @property
    def stored(self) -> mx.Dtype:
        """Type in which the weights are stored, or their scales."""
        words = self.words
        return words.scales.dtype if isinstance(words, QuantizedMatrix) else words.dtype

    def model(self, precision: Precision) -> Qwen3:
        """Return the model, computed by MLX."""
        return Qwen3(self, precision)


class Norm:
    """Scales every row to a mean square of 1, then by a weight."""

    def __init__(self, weight: mx.array, epsilon: float) -> None:
        self._weight, self._epsilon = weight.astype(mx.float32), epsilon
        mx.eval(self._weight)

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        return mx.fast.rms_norm(x, self._weight, self._epsilon)


class Layer:
    """One layer."""

    def __init__(self, parameters: LayerParameters, model: Parameters, precision: Precision) -> None:
        self._heads, self._heads_to_turn = model.heads, model.heads + model.key_heads
        self._head_size, self._epsilon = model.head_size, model.epsilon
        self._attention_norm = Norm(parameters.attention_norm, model.epsilon)
        self._query_key_value = precision.linears(parameters.query, parameters.key, parameters.value)
        norms = [parameters.query_norm[None]] * model.heads + [parameters.key_norm[None]] * model.key_heads
        self._query_key_norm = mx.concatenate(norms).astype(mx.float32)
        self._attention_output = precision.linear(parameters.attention_output)
        self._feed_forward_norm = Norm(parameters.feed_forward_norm, model.epsilon)
        self._gate_and_up = precision.linears(parameters.gate, parameters.up)
        self._down = precision.linear(parameters.down)
        mx.eval(self._query_key_norm)

    def __call__(self, x: mx.array, angles: Angles, attention: PackedAttention, dtype: mx.Dtype) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        query_key_value = self._query_key_value(self._attention_norm(x), dtype)
        query_key_value = query_key_value.reshape(x.shape[0], -1, self._head_size)
        query_key, value = mx.split(query_key_value, [self._heads_to_turn], axis=1)
        query_key = mx.fast.rms_norm(query_key, None, self._epsilon)
        query_key = turn_weighted(query_key, self._query_key_norm, angles)
        mixed = attention(self._heads, query_key, value, scope=Scope(is_causal=True))
        x = added(x, self._attention_output(mixed, dtype))
        inner = silu_gated(*halves(self._gate_and_up(self._feed_forward_norm(x), dtype)))
        return added(x, self._down(inner, dtype))


class Qwen3:
    """The decoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters, precision: Precision) -> None:
        self.dimension = parameters.dimension
        self.vocabulary, self.longest_text = parameters.vocabulary, parameters.longest_text
        self._words = parameters.words
        self._rotary = Rotary(parameters.head_size, parameters.theta)
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters, precision) for _ in range(len(parameters.layers))
        ]
        self._norm = Norm(parameters.norm, parameters.epsilon)

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        angles = self._rotary.angles(positions_of(lengths), lengths[-1])
        attention = PackedAttention(lengths, on_step)
        x = look_up(self._words, token_ids).astype(mx.float32)
        for layer in self._layers:
            x = layer(x, angles, attention, dtype)
            after_layer(x, on_step)
        return self._norm(x)


def read(configuration: Qwen3Configuration, weights: Weights) -> Parameters:
    """Take the decoder's tensors; that of the head that predicts words is left alone."""
    weights = weights.quantized_as(configuration.quantization)
    weights = weights.under_if_there("model.", "embed_tokens.weight")
    return Parameters(
        words=weights.take_matrix("embed_tokens", configuration.vocabulary, configuration.dimension),
        layers=[
            _layer(weights.under(f"layers.{index}."), configuration) for index in range(configuration.layers)
        ],
        norm=weights.take("norm.weight", configuration.dimension),
        heads=configuration.heads,
        key_heads=configuration.key_heads,
        head_size=configuration.head_size,
        inner=configuration.inner,
        epsilon=configuration.epsilon,
        theta=configuration.theta,
        vocabulary=configuration.vocabulary,
        dimension=configuration.dimension,
        longest_text=configuration.positions,
    )


def _layer(weights: Weights, configuration: Qwen3Configuration) -> LayerParameters:
    def linear(name: str, outputs: int, inputs: int, *, has_bias: bool = False) -> Linear:
        bias = weights.take(f"{name}.bias", outputs) if has_bias else None
        return Linear(weights.take_matrix(name, outputs, inputs), bias)

    dimension, inner, head_size = configuration.dimension, configuration.inner, configuration.head_size
    queries, keys = configuration.heads * head_size, configuration.key_heads * head_size
    has_bias = configuration.has_bias
    return LayerParameters(
        attention_norm=weights.take("input_layernorm.weight", dimension),
        query=linear("self_attn.q_proj", queries, dimension, has_bias=has_bias),
        key=linear("self_attn.k_proj", keys, dimension, has_bias=has_bias),
        value=linear("self_attn.v_proj", keys, dimension, has_bias=has_bias),
        query_norm=weights.take("self_attn.q_norm.weight", head_size),
        key_norm=weights.take("self_attn.k_norm.weight", head_size),
        attention_output=linear("self_attn.o_proj", dimension, queries, has_bias=has_bias),
        feed_forward_norm=weights.take("post_attention_layernorm.weight", dimension),
        gate=linear("mlp.gate_proj", inner, dimension),
        up=linear("mlp.up_proj", inner, dimension),
        down=linear("mlp.down_proj", dimension, inner),
    )
