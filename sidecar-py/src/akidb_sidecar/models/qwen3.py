"""Qwen3, the decoder behind Qwen3-Embedding: the last token has seen all of its text and speaks for it.

Yang et al. 2025, https://arxiv.org/abs/2505.09388, and Zhang et al. 2025, https://arxiv.org/abs/2506.05176.
Layers of causal attention with grouped heads and rotary positions, and of a gated feed-forward, each behind a
root-mean-square norm and beside a residual; the queries and keys of every head are normed, too. Linear layers
run over the real tokens of all texts at once; only attention knows texts (see ``_causal_attention``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._quantization import QuantizedMatrix
from akidb_sidecar.models import TOKENS_PER_STEP
from akidb_sidecar.models._causal_attention import CausalAttention
from akidb_sidecar.models._functions import ON_CPU
from akidb_sidecar.models._rotary import Rotary, positions_of, turn

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import Qwen3Configuration

Matrix = mx.array | QuantizedMatrix


@dataclass(frozen=True)
class Linear:
    """A weight of the shape ``(outputs, inputs)``, and perhaps a bias."""

    weight: Matrix
    bias: mx.array | None

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, outputs)``."""
        weight = self.weight
        product = weight.product(x) if isinstance(weight, QuantizedMatrix) else x @ weight.T
        return product if self.bias is None else product + self.bias


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

    def model(self, *, keep_quantized: bool) -> Qwen3:
        """Return the model, computed by MLX."""
        return Qwen3(self, keep_quantized=keep_quantized)


class Layer:
    """One layer."""

    def __init__(self, parameters: LayerParameters, model: Parameters, precision: Precision) -> None:
        linear, norm = precision.linear, precision.floating
        self._epsilon, self._head_size = model.epsilon, model.head_size
        self._attention_norm = norm(parameters.attention_norm)
        self._query, self._key = linear(parameters.query), linear(parameters.key)
        self._value = linear(parameters.value)
        self._query_norm, self._key_norm = norm(parameters.query_norm), norm(parameters.key_norm)
        self._attention_output = linear(parameters.attention_output)
        self._feed_forward_norm = norm(parameters.feed_forward_norm)
        self._gate, self._up, self._down = map(linear, (parameters.gate, parameters.up, parameters.down))

    def __call__(
        self, x: mx.array, angles: tuple[mx.array, mx.array], attention: CausalAttention
    ) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        normed = mx.fast.rms_norm(x, self._attention_norm, self._epsilon)
        query = turn(self._norm_heads(self._query(normed), self._query_norm), angles)
        key = turn(self._norm_heads(self._key(normed), self._key_norm), angles)
        mixed = attention(query, key, self._heads(self._value(normed)))
        x = x + self._attention_output(mixed)
        normed = mx.fast.rms_norm(x, self._feed_forward_norm, self._epsilon)
        gate = self._gate(normed)
        return x + self._down(gate * mx.sigmoid(gate) * self._up(normed))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], -1, self._head_size)

    def _norm_heads(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(self._heads(x), weight, self._epsilon)


class Qwen3:
    """The decoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters, *, keep_quantized: bool) -> None:
        """``keep_quantized``: on a CPU, dequantize nothing. On a GPU nothing ever is."""
        precision = Precision(parameters, keep_quantized=keep_quantized)
        self.dimension, self.dtype = parameters.dimension, precision.dtype
        self.vocabulary, self.longest_text = parameters.vocabulary, parameters.longest_text
        self._words = parameters.words
        self._rotary = Rotary(parameters.head_size, parameters.theta)
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters, precision) for _ in range(len(parameters.layers))
        ]
        self._norm, self._epsilon = precision.floating(parameters.norm), parameters.epsilon

    def __call__(self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        angles = self._rotary.angles(positions_of(lengths), lengths[-1], self.dtype)
        attention = CausalAttention(lengths, on_step)
        x = look_up(self._words, token_ids).astype(self.dtype)
        for layer in self._layers:
            x = layer(x, angles, attention)
            if token_ids.size > TOKENS_PER_STEP:
                mx.eval(x)
                on_step()
        return mx.fast.rms_norm(x, self._norm, self._epsilon)


class Precision:
    """In which type a device computes, and how it holds weights."""

    def __init__(self, parameters: Parameters, *, keep_quantized: bool) -> None:
        words = parameters.words
        stored = words.scales.dtype if isinstance(words, QuantizedMatrix) else words.dtype
        self.dtype = mx.float32 if ON_CPU else stored
        self._keep_quantized = keep_quantized or not ON_CPU

    def floating(self, values: mx.array) -> mx.array:
        """Return a norm or a bias as it is computed with."""
        values = values.astype(self.dtype)
        mx.eval(values)
        return values

    def linear(self, linear: Linear) -> Linear:
        """Return a linear layer as it is computed with; what was read for it can be freed then."""
        weight = linear.weight
        if isinstance(weight, QuantizedMatrix):
            weight = weight.with_scales_of(self.dtype)
        if isinstance(weight, QuantizedMatrix) and self._keep_quantized:
            mx.eval(weight.weight, weight.scales, weight.biases)
        else:
            weight = plain(weight).astype(self.dtype)
            mx.eval(weight)
        return Linear(weight, None if linear.bias is None else self.floating(linear.bias))


def plain(matrix: Matrix) -> mx.array:
    """Return a matrix as numbers; dequantized in float32 where it is to be."""
    if isinstance(matrix, QuantizedMatrix):
        return matrix.with_scales_of(mx.float32).dequantized()
    return matrix


def look_up(words: Matrix, token_ids: mx.array) -> mx.array:
    """``(tokens,)`` to ``(tokens, dimension)``. The table stays as it is stored: few rows are needed."""
    return plain(words.rows(token_ids)) if isinstance(words, QuantizedMatrix) else words[token_ids]


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
