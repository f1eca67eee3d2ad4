"""BERT: embeddings, then layers of self-attention and feed-forward, each with a residual and a layer norm.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Every linear layer runs over the real tokens of all
texts at once; only attention knows texts (see ``_attention``). Queries, keys and values come from one
product, and biases are added by the product itself.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from akidb_sidecar._buffers import to_mlx
from akidb_sidecar.models._attention import PackedAttention, Scope
from akidb_sidecar.models._functions import added, gelu
from akidb_sidecar.models._linear import Linear
from akidb_sidecar.models._steps import after_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import BertConfiguration
    from akidb_sidecar.models._linear import Precision


@dataclass(frozen=True)
class LayerNorm:
    """Scales every row to mean 0 and variance 1, then by ``weight``, and adds ``bias``."""

    weight: mx.array
    bias: mx.array
    epsilon: float

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        return mx.fast.layer_norm(x, self.weight, self.bias, self.epsilon)

    def exact(self) -> LayerNorm:
        """Return the same in float32, in which it is computed."""
        weight, bias = self.weight.astype(mx.float32), self.bias.astype(mx.float32)
        mx.eval(weight, bias)
        return LayerNorm(weight, bias, self.epsilon)


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
    positions: mx.array
    """In float32, with what is added to every token; all else is as it is stored."""
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

    @property
    def stored(self) -> mx.Dtype:
        """Type in which the weights are stored."""
        return self.words.dtype

    def model(self, precision: Precision) -> Bert:
        """Return the model, computed by MLX."""
        return Bert(self, precision)


class Layer:
    """One encoder layer."""

    def __init__(self, layer: LayerParameters, heads: int, precision: Precision) -> None:
        self._heads = heads
        self._query_key_value = precision.linears(layer.query, layer.key, layer.value)
        self._attention_output = precision.linear(layer.attention_output)
        self._attention_norm = layer.attention_norm.exact()
        self._up, self._down = precision.linear(layer.up), precision.linear(layer.down)
        self._output_norm = layer.output_norm.exact()

    def __call__(self, x: mx.array, attention: PackedAttention, dtype: mx.Dtype) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        query_key_value = self._query_key_value(x, dtype).reshape(x.shape[0], 3 * self._heads, -1)
        mixed = attention(self._heads, query_key_value, scope=Scope())
        x = self._attention_norm(added(x, self._attention_output(mixed, dtype)))
        return self._output_norm(added(x, self._down(gelu(self._up(x, dtype)), dtype)))


class Bert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters, precision: Precision) -> None:
        self.dimension = parameters.dimension
        self.vocabulary, self.longest_text = parameters.words.shape[0], parameters.positions.shape[0]
        self._words = parameters.words
        self._positions = mx.concatenate([parameters.positions, parameters.padding_position[None]])
        self._padding = parameters.padding
        self._norm = parameters.norm.exact()
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters.heads, precision) for _ in range(len(parameters.layers))
        ]
        self._position_ids = array("I", range(self.longest_text))

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        position_ids = self._places(token_ids, lengths)
        x = self._norm(added(self._positions[to_mlx(position_ids)], self._words[token_ids]))
        attention = PackedAttention(lengths, on_step)
        for layer in self._layers:
            x = layer(x, attention, dtype)
            after_layer(x, on_step)
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


def read(configuration: BertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the pooler and of training heads are left alone."""
    weights = weights.under_if_there(configuration.prefix, "embeddings.word_embeddings.weight")
    dimension, inner, epsilon = configuration.dimension, configuration.inner, configuration.epsilon
    words = weights.take("embeddings.word_embeddings.weight", configuration.vocabulary, dimension)
    embeddings = weights.under("embeddings.")
    positions = embeddings.take("position_embeddings.weight", configuration.positions, dimension)
    first_type = embeddings.take("token_type_embeddings.weight", configuration.types, dimension)[0]
    # Every token is of the first type.
    positions = positions.astype(mx.float32) + first_type.astype(mx.float32)
    return Parameters(
        words=words,
        positions=positions[configuration.first_position :],
        padding=configuration.padding,
        padding_position=positions[configuration.padding or 0],
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
