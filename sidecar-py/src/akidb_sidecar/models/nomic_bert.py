"""Nomic's BERT: BERT with rotary positions and a gated feed-forward, and without biases, for long texts.

Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613. Each residual is followed by a layer norm, as in BERT.
Linear layers run over the real tokens of all texts at once; only attention knows texts (see
``_windowed_attention``). The scale of the scores is folded into the weights of the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models import TOKENS_PER_STEP
from akidb_sidecar.models._functions import SCORE_SCALE, working_dtype
from akidb_sidecar.models._rotary import Rotary, positions_of, turn
from akidb_sidecar.models._windowed_attention import WindowedAttention
from akidb_sidecar.models.bert import LayerNorm

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import NomicBertConfiguration


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one layer; matrices are ``(outputs, inputs)``."""

    query_key_value: mx.array
    attention_output: mx.array
    attention_norm: LayerNorm
    gate: mx.array
    up: mx.array
    down: mx.array
    output_norm: LayerNorm


@dataclass(frozen=True)
class Parameters:
    """The tensors of the encoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: mx.array
    """As they are stored; everything else is of the type to compute with."""
    first_type: mx.array
    norm: LayerNorm
    layers: list[LayerParameters]
    heads: int
    theta: float
    longest_text: int

    def model(self, *, keep_quantized: bool) -> NomicBert:
        """Return the model, computed by MLX."""
        del keep_quantized  # it never is quantized
        return NomicBert(self)


class Layer:
    """One layer."""

    def __init__(self, layer: LayerParameters, heads: int) -> None:
        self._heads = heads
        dimension = layer.query_key_value.shape[1]
        query, key_value = mx.split(layer.query_key_value, [dimension])
        scale = SCORE_SCALE / (dimension // heads) ** 0.5
        self._query_key_value = mx.concatenate([query * scale, key_value])
        self._attention_output, self._attention_norm = layer.attention_output, layer.attention_norm
        self._gate, self._up, self._down = layer.gate, layer.up, layer.down
        self._output_norm = layer.output_norm
        # Before the next layer, so that what was read for this one can be freed.
        mx.eval(self._query_key_value, self._attention_output, self._gate, self._up, self._down)

    def __call__(
        self, x: mx.array, angles: tuple[mx.array, mx.array], attention: WindowedAttention
    ) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        query_key_value = (x @ self._query_key_value.T).reshape(x.shape[0], 3 * self._heads, -1)
        query_key, value = mx.split(query_key_value, [2 * self._heads], axis=1)
        query, key = mx.split(turn(query_key, angles), 2, axis=1)
        x = self._attention_norm(x + attention(query, key, value) @ self._attention_output.T)
        gate = x @ self._gate.T
        inner = gate * mx.sigmoid(gate) * (x @ self._up.T)
        return self._output_norm(x + inner @ self._down.T)


class NomicBert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters) -> None:
        self.vocabulary, self.dimension = parameters.words.shape
        self.dtype = parameters.first_type.dtype
        self.longest_text = parameters.longest_text
        self._words, self._first_type = parameters.words, parameters.first_type
        self._norm = parameters.norm
        self._rotary = Rotary(self.dimension // parameters.heads, parameters.theta)
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters.heads) for _ in range(len(parameters.layers))
        ]

    def __call__(self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        angles = self._rotary.angles(positions_of(lengths), lengths[-1], self.dtype)
        attention = WindowedAttention(lengths, on_step)
        x = self._norm(self._words[token_ids].astype(self.dtype) + self._first_type)
        for layer in self._layers:
            x = layer(x, angles, attention)
            if token_ids.size > TOKENS_PER_STEP:
                mx.eval(x)
                on_step()
        return x


def read(configuration: NomicBertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the heads for training are left alone."""
    weights = weights.under_if_there("nomic_bert.", "embeddings.word_embeddings.weight")
    dimension, inner, epsilon = configuration.dimension, configuration.inner, configuration.epsilon
    words = weights.take("embeddings.word_embeddings.weight", configuration.vocabulary, dimension)
    weights = weights.converted(working_dtype(words.dtype))
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
    return LayerParameters(
        query_key_value=weights.take("attn.Wqkv.weight", 3 * dimension, dimension),
        attention_output=weights.take("attn.out_proj.weight", dimension, dimension),
        attention_norm=_layer_norm(weights.under("norm1."), dimension, epsilon),
        gate=weights.take("mlp.fc12.weight", inner, dimension),
        up=weights.take("mlp.fc11.weight", inner, dimension),
        down=weights.take("mlp.fc2.weight", dimension, inner),
        output_norm=_layer_norm(weights.under("norm2."), dimension, epsilon),
    )


def _layer_norm(weights: Weights, dimension: int, epsilon: float) -> LayerNorm:
    return LayerNorm(weights.take("weight", dimension), weights.take("bias", dimension), epsilon)
