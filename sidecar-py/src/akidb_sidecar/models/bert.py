"""BERT: embeddings, then layers of self-attention and feed-forward, each with a residual and a layer norm.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Every linear layer runs over the real tokens of all
texts at once; only attention knows texts (see ``_attention``). Queries, keys and values come from one
product, biases are added by the product itself, and the scale of the scores is folded into the weights of the
queries.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from akidb_sidecar._buffers import to_mlx
from akidb_sidecar.models._attention import PackedAttention
from akidb_sidecar.models._functions import SCORE_SCALE, gelu, working_dtype
from akidb_sidecar.models._windowed_attention import WindowedAttention

if TYPE_CHECKING:
    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import BertConfiguration

LONGEST_AT_ONCE = 512
"""Tokens of a text. All scores of longer ones would take too much memory at once."""


@dataclass(frozen=True)
class Linear:
    """A weight of the shape ``(outputs, inputs)``, and a bias."""

    weight: mx.array
    bias: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, outputs)``."""
        return mx.addmm(self.bias, x, self.weight.T)


@dataclass(frozen=True)
class LayerNorm:
    """Scales every row to mean 0 and variance 1, then by ``weight``, and adds ``bias``."""

    weight: mx.array
    bias: mx.array
    epsilon: float

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        return mx.fast.layer_norm(x, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one encoder layer."""

    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    output_norm: LayerNorm


@dataclass(frozen=True)
class Parameters:
    """The tensors of the encoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: mx.array
    """As they are stored; everything else is of the type to compute with."""
    positions: mx.array
    padding: int | None
    """The token that takes no place in a text: RoBERTa's, where a text has its name in it."""
    padding_position: mx.array
    """What is added to that token in place of a position."""
    norm: LayerNorm
    layers: list[LayerParameters]
    heads: int
    inner: int

    @property
    def dimension(self) -> int:
        """Width of a token vector."""
        return int(self.words.shape[1])

    def model(self, *, keep_quantized: bool) -> Bert:
        """Return the model, computed by MLX."""
        del keep_quantized  # it never is quantized
        return Bert(self)


Attention = Callable[[mx.array], mx.array]
"""``(tokens, 3 * dimension)``, queries scaled, to ``(tokens, dimension)``."""


class Layer:
    """One encoder layer."""

    def __init__(self, layer: LayerParameters, heads: int) -> None:
        query, key, value = layer.query, layer.key, layer.value
        scale = SCORE_SCALE / (query.weight.shape[0] // heads) ** 0.5
        self._query_key_value = Linear(
            weight=mx.concatenate([query.weight * scale, key.weight, value.weight]),
            bias=mx.concatenate([query.bias * scale, key.bias, value.bias]),
        )
        # Before the next layer, so that the separate queries, keys and values can be freed.
        mx.eval(self._query_key_value.weight, self._query_key_value.bias)
        self._attention_output = layer.attention_output
        self._attention_norm = layer.attention_norm
        self._up = layer.up
        self._down = layer.down
        self._output_norm = layer.output_norm

    def __call__(self, x: mx.array, attention: Attention) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        x = self._attention_norm(x + self._attention_output(attention(self._query_key_value(x))))
        return self._output_norm(x + self._down(gelu(self._up(x))))


class Bert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters) -> None:
        self.dimension = parameters.dimension
        self.dtype = parameters.positions.dtype
        self.vocabulary, self.longest_text = parameters.words.shape[0], parameters.positions.shape[0]
        self._words = parameters.words
        self._positions = mx.concatenate([parameters.positions, parameters.padding_position[None]])
        self._padding = parameters.padding
        self._norm = parameters.norm
        self._heads = parameters.heads
        parameters.layers.reverse()
        self._layers = [Layer(parameters.layers.pop(), self._heads) for _ in range(len(parameters.layers))]
        self._position_ids = array("I", range(self.longest_text))

    def __call__(self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        position_ids = self._places(token_ids, lengths)
        words = self._words[token_ids].astype(self.dtype)
        x = self._norm(words + self._positions[to_mlx(position_ids)])
        is_long = lengths[-1] > LONGEST_AT_ONCE
        attention: Attention = (
            _in_blocks(WindowedAttention(lengths, on_step), self._heads)
            if is_long
            else PackedAttention(lengths, self._heads)
        )
        for layer in self._layers:
            x = layer(x, attention)
            if is_long:
                mx.eval(x)
                on_step()
        return x

    def _places(self, token_ids: mx.array, lengths: array[int]) -> array[int]:
        """Return the row of the table of positions for each token."""
        places = array("I")
        for length in lengths:
            places += self._position_ids[:length]
        if self._padding is None or not mx.any(token_ids == self._padding).item():
            return places
        tokens, start = cast("list[int]", token_ids.tolist()), 0
        for length in lengths:
            place = 0
            for index in range(start, start + length):
                is_padding = tokens[index] == self._padding
                places[index] = self.longest_text if is_padding else place
                place += not is_padding
            start += length
        return places


def _in_blocks(attention: WindowedAttention, heads: int) -> Attention:
    def attend(query_key_value: mx.array) -> mx.array:
        tokens = query_key_value.shape[0]
        query, key, value = query_key_value.reshape(tokens, 3, heads, -1).swapaxes(0, 1)
        return attention(query, key, value)

    return attend


def read(configuration: BertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the pooler and of training heads are left alone."""
    weights = weights.under_if_there(configuration.prefix, "embeddings.word_embeddings.weight")
    dimension, inner, epsilon = configuration.dimension, configuration.inner, configuration.epsilon
    words = weights.take("embeddings.word_embeddings.weight", configuration.vocabulary, dimension)
    weights = weights.converted(working_dtype(words.dtype))
    embeddings = weights.under("embeddings.")
    positions = embeddings.take("position_embeddings.weight", configuration.positions, dimension)
    first_type = embeddings.take("token_type_embeddings.weight", configuration.types, dimension)[0]
    return Parameters(
        words=words,
        # Every token is of the first type.
        positions=positions[configuration.first_position :] + first_type,
        padding=configuration.padding,
        padding_position=positions[configuration.padding or 0] + first_type,
        norm=_layer_norm(embeddings.under("LayerNorm."), dimension, epsilon),
        layers=[
            _layer(weights.under(f"encoder.layer.{index}."), dimension, inner, epsilon)
            for index in range(configuration.layers)
        ],
        heads=configuration.heads,
        inner=inner,
    )


def _layer(weights: Weights, dimension: int, inner: int, epsilon: float) -> LayerParameters:
    attention = weights.under("attention.self.")
    return LayerParameters(
        query=_linear(attention.under("query."), dimension, dimension),
        key=_linear(attention.under("key."), dimension, dimension),
        value=_linear(attention.under("value."), dimension, dimension),
        attention_output=_linear(weights.under("attention.output.dense."), dimension, dimension),
        attention_norm=_layer_norm(weights.under("attention.output.LayerNorm."), dimension, epsilon),
        up=_linear(weights.under("intermediate.dense."), dimension, inner),
        down=_linear(weights.under("output.dense."), inner, dimension),
        output_norm=_layer_norm(weights.under("output.LayerNorm."), dimension, epsilon),
    )


def _linear(weights: Weights, inputs: int, outputs: int) -> Linear:
    return Linear(weights.take("weight", outputs, inputs), weights.take("bias", outputs))


def _layer_norm(weights: Weights, dimension: int, epsilon: float) -> LayerNorm:
    return LayerNorm(weights.take("weight", dimension), weights.take("bias", dimension), epsilon)
