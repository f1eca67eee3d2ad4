"""Nomic's BERT: BERT with rotary positions and a gated feed-forward, and without biases, for long texts.

Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613. Each residual is followed by a layer norm, as in BERT.
Linear layers run over the real tokens of all texts at once; only attention knows texts (see ``_attention``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._buffers import halves
from akidb_sidecar.models._attention import PackedAttention, Scope
from akidb_sidecar.models._functions import added, silu_gated
from akidb_sidecar.models._linear import Linear
from akidb_sidecar.models._rotary import Rotary, positions_of, turn
from akidb_sidecar.models._steps import after_layer
from akidb_sidecar.models.bert import LayerNorm

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import NomicBertConfiguration
    from akidb_sidecar.models._linear import Precision
    from akidb_sidecar.models._rotary import Angles


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one layer, as they are stored."""

    query_key_value: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    gate: Linear
    up: Linear
    down: Linear
    output_norm: LayerNorm


@dataclass(frozen=True)
class Parameters:
    """The tensors of the encoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: mx.array
    first_type: mx.array
    norm: LayerNorm
    layers: list[LayerParameters]
    heads: int
    theta: float
    longest_text: int

    @property
    def stored(self) -> mx.Dtype:
        """Type in which the weights are stored."""
        return self.words.dtype

    def model(self, precision: Precision) -> NomicBert:
        """Return the model, computed by MLX."""
        return NomicBert(self, precision)


class Layer:
    """One layer."""

    def __init__(self, layer: LayerParameters, heads: int, precision: Precision) -> None:
        self._heads = heads
        self._query_key_value = precision.linear(layer.query_key_value)
        self._attention_output = precision.linear(layer.attention_output)
        self._attention_norm = layer.attention_norm.exact()
        self._gate_and_up = precision.linears(layer.gate, layer.up)
        self._down = precision.linear(layer.down)
        self._output_norm = layer.output_norm.exact()

    def __call__(self, x: mx.array, angles: Angles, attention: PackedAttention, dtype: mx.Dtype) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        query_key_value = self._query_key_value(x, dtype).reshape(x.shape[0], 3 * self._heads, -1)
        query_key, value = mx.split(query_key_value, [2 * self._heads], axis=1)
        mixed = attention(self._heads, turn(query_key, angles), value, scope=Scope())
        x = self._attention_norm(added(x, self._attention_output(mixed, dtype)))
        inner = silu_gated(*halves(self._gate_and_up(x, dtype)))
        return self._output_norm(added(x, self._down(inner, dtype)))


class NomicBert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters, precision: Precision) -> None:
        self.vocabulary, self.dimension = parameters.words.shape
        self.longest_text = parameters.longest_text
        self._words, self._first_type = parameters.words, parameters.first_type.astype(mx.float32)
        self._norm = parameters.norm.exact()
        self._rotary = Rotary(self.dimension // parameters.heads, parameters.theta)
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters.heads, precision) for _ in range(len(parameters.layers))
        ]

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        angles = self._rotary.angles(positions_of(lengths), lengths[-1])
        attention = PackedAttention(lengths, on_step)
        x = self._norm(added(self._first_type, self._words[token_ids]))
        for layer in self._layers:
            x = layer(x, angles, attention, dtype)
            after_layer(x, on_step)
        return x


def read(configuration: NomicBertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the heads for training are left alone."""
    weights = weights.under_if_there("nomic_bert.", "embeddings.word_embeddings.weight")
    dimension, inner, epsilon = configuration.dimension, configuration.inner, configuration.epsilon
    words = weights.take("embeddings.word_embeddings.weight", configuration.vocabulary, dimension)
    first_type = weights.take("embeddings.token_type_embeddings.weight", configuration.types, dimension)[0]
    return Parameters(
        words=words,
        first_type=first_type,
        norm=_layer_norm(weights.under("emb_ln."), dimension, epsilon),
        layers=[
            _layer(weights.under(f"encoder.layers.{index}."), dimension, inner, epsilon)
            for index in range(configuration.layers)
        ],
        heads=configuration.heads,
        theta=configuration.theta,
        longest_text=configuration.positions,
    )


def _layer(weights: Weights, dimension: int, inner: int, epsilon: float) -> LayerParameters:
    def linear(name: str, outputs: int, inputs: int) -> Linear:
        return Linear(weights.take(f"{name}.weight", outputs, inputs))

    return LayerParameters(
        query_key_value=linear("attn.Wqkv", 3 * dimension, dimension),
        attention_output=linear("attn.out_proj", dimension, dimension),
        attention_norm=_layer_norm(weights.under("norm1."), dimension, epsilon),
        gate=linear("mlp.fc12", inner, dimension),
        up=linear("mlp.fc11", inner, dimension),
        down=linear("mlp.fc2", dimension, inner),
        output_norm=_layer_norm(weights.under("norm2."), dimension, epsilon),
    )


def _layer_norm(weights: Weights, dimension: int, epsilon: float) -> LayerNorm:
    return LayerNorm(weights.take("weight", dimension), weights.take("bias", dimension), epsilon)
