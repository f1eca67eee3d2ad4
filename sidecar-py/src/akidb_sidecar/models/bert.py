"""BERT: embeddings, then layers of self-attention and feed-forward, each with a residual and a layer norm.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Every linear layer runs over the real tokens of all texts at
once; only attention knows texts (see ``_attention``). Queries, keys and values come from one product, biases and
residuals are added by the product itself, and the scale of the scores is folded into the weights of the queries.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from akidb_sidecar._errors import ModelError
from akidb_sidecar.models._attention import PackedAttention
from akidb_sidecar.models._functions import SCORE_SCALE, gelu

if TYPE_CHECKING:
    from akidb_sidecar._weights import Weights


@dataclass(frozen=True)
class Linear:
    """A product with a transposed view of ``(outputs, inputs)``, and a bias."""

    weight: mx.array
    bias: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, outputs)``."""
        return mx.addmm(self.bias, x, self.weight)


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
class Layer:
    """One encoder layer."""

    query_key_value: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    output_norm: LayerNorm

    def __call__(self, x: mx.array, attention: PackedAttention) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        x = self.attention_norm(x + self.attention_output(attention(self.query_key_value(x))))
        return self.output_norm(x + self.down(gelu(self.up(x))))


class Bert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(
        self, words: mx.array, positions: mx.array, norm: LayerNorm, layers: list[Layer], heads: int
    ) -> None:
        self.dimension: int = words.shape[1]
        self.dtype = words.dtype
        self._words = words
        self._positions = positions
        self._norm = norm
        self._layers = layers
        self._heads = heads
        self._position_ids = array("I", range(positions.shape[0]))

    def __call__(self, token_ids: mx.array, lengths: array[int]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        position_ids = array("I")
        for length in lengths:
            position_ids += self._position_ids[:length]
        x = self._norm(self._words[token_ids] + self._positions[mx.array(position_ids)])
        attention = PackedAttention(lengths, self._heads)
        for layer in self._layers:
            x = layer(x, attention)
        return x


def load(config: dict[str, Any], weights: Weights) -> Bert:
    """Take the encoder's tensors; those of the pooler and of training heads are left alone."""
    activation = config.get("hidden_act", "gelu")
    position_type = config.get("position_embedding_type", "absolute")
    if activation != "gelu" or position_type != "absolute":
        raise ModelError(
            "unsupported_model",
            f"BERT with `hidden_act` `{activation}` and `position_embedding_type` `{position_type}` is not "
            "supported; supported are `gelu` and `absolute`",
        )
    dimension, heads = config["hidden_size"], config["num_attention_heads"]
    if dimension % heads:
        raise ModelError("bad_model", f"`hidden_size` {dimension} is not a multiple of {heads} attention heads")
    if weights.has("bert.embeddings.word_embeddings.weight"):
        weights = weights.under("bert.")
    embeddings = weights.under("embeddings.")
    epsilon = config.get("layer_norm_eps", 1e-12)
    positions = embeddings.take("position_embeddings.weight", config["max_position_embeddings"], dimension)
    types = embeddings.take("token_type_embeddings.weight", config["type_vocab_size"], dimension)
    model = Bert(
        words=embeddings.take("word_embeddings.weight", config["vocab_size"], dimension),
        positions=positions + types[0],  # every token is of type 0
        norm=_layer_norm(embeddings.under("LayerNorm."), dimension, epsilon),
        layers=[
            _layer(weights.under(f"encoder.layer.{index}."), dimension, heads, config["intermediate_size"], epsilon)
            for index in range(config["num_hidden_layers"])
        ],
        heads=heads,
    )
    return model


def _layer(weights: Weights, dimension: int, heads: int, inner: int, epsilon: float) -> Layer:
    scale = SCORE_SCALE / (dimension // heads) ** 0.5
    query, key, value = (
        _linear(weights.under(f"attention.self.{name}."), dimension, dimension) for name in ("query", "key", "value")
    )
    layer = Layer(
        query_key_value=Linear(
            weight=mx.concatenate([query.weight.T * scale, key.weight.T, value.weight.T]).T,
            bias=mx.concatenate([query.bias * scale, key.bias, value.bias]),
        ),
        attention_output=_linear(weights.under("attention.output.dense."), dimension, dimension),
        attention_norm=_layer_norm(weights.under("attention.output.LayerNorm."), dimension, epsilon),
        up=_linear(weights.under("intermediate.dense."), dimension, inner),
        down=_linear(weights.under("output.dense."), inner, dimension),
        output_norm=_layer_norm(weights.under("output.LayerNorm."), dimension, epsilon),
    )
    # Before the next layer, so that the separate queries, keys and values can be freed.
    mx.eval(layer.query_key_value.weight, layer.query_key_value.bias)
    return layer


def _linear(weights: Weights, inputs: int, outputs: int) -> Linear:
    return Linear(weights.take("weight", outputs, inputs).T, weights.take("bias", outputs))


def _layer_norm(weights: Weights, dimension: int, epsilon: float) -> LayerNorm:
    return LayerNorm(weights.take("weight", dimension), weights.take("bias", dimension), epsilon)
