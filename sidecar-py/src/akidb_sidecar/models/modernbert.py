"""ModernBERT: BERT with what was learned since, and for texts of 8,192 tokens.

Warner et al. 2024, https://arxiv.org/abs/2412.13663. Layers of attention with rotary positions and of a
gated feed-forward, each after a layer norm and with a residual, without biases. Some layers attend to all
of a text, the others to a window around each token, with rotary angles of their own. Linear layers run over
the real tokens of all texts at once; only attention knows texts (see ``_attention``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._buffers import halves
from akidb_sidecar.configurations.modernbert import IN_WINDOW
from akidb_sidecar.models._attention import PackedAttention, Scope
from akidb_sidecar.models._functions import added, gelu_gated
from akidb_sidecar.models._linear import Linear
from akidb_sidecar.models._rotary import Rotary, positions_of, turn
from akidb_sidecar.models._steps import after_layer

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import ModernBertConfiguration
    from akidb_sidecar.models._linear import Precision
    from akidb_sidecar.models._rotary import Angles


@dataclass(frozen=True)
class LayerNorm:
    """Scales every row to mean 0 and variance 1, then by ``weight``."""

    weight: mx.array
    epsilon: float

    def __call__(self, x: mx.array) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        return mx.fast.layer_norm(x, self.weight, None, self.epsilon)

    def exact(self) -> LayerNorm:
        """Return the same in float32, in which it is computed."""
        weight = self.weight.astype(mx.float32)
        mx.eval(weight)
        return LayerNorm(weight, self.epsilon)


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one layer, as they are stored."""

    kind: str
    attention_norm: LayerNorm | None
    query_key_value: Linear
    attention_output: Linear
    feed_forward_norm: LayerNorm
    up_and_gate: Linear
    down: Linear


@dataclass(frozen=True)
class Parameters:
    """The tensors of the encoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: mx.array
    words_norm: LayerNorm
    layers: list[LayerParameters]
    norm: LayerNorm
    heads: int
    window: int
    """Tokens to each side of a token, in the layers that attend to a window."""
    thetas: dict[str, float]
    """Of each kind of layer."""
    longest_text: int

    @property
    def stored(self) -> mx.Dtype:
        """Type in which the weights are stored."""
        return self.words.dtype

    def model(self, precision: Precision) -> ModernBert:
        """Return the model, computed by MLX."""
        return ModernBert(self, precision)


class Layer:
    """One layer."""

    def __init__(self, layer: LayerParameters, model: Parameters, precision: Precision) -> None:
        self._heads, self.kind = model.heads, layer.kind
        self._scope = Scope(window=model.window if layer.kind == IN_WINDOW else None)
        self._attention_norm = layer.attention_norm and layer.attention_norm.exact()
        self._query_key_value = precision.linear(layer.query_key_value)
        self._attention_output = precision.linear(layer.attention_output)
        self._feed_forward_norm = layer.feed_forward_norm.exact()
        self._up_and_gate, self._down = precision.linear(layer.up_and_gate), precision.linear(layer.down)

    def __call__(self, x: mx.array, angles: Angles, attention: PackedAttention, dtype: mx.Dtype) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        normed = x if self._attention_norm is None else self._attention_norm(x)
        query_key_value = self._query_key_value(normed, dtype).reshape(x.shape[0], 3 * self._heads, -1)
        query_key, value = mx.split(query_key_value, [2 * self._heads], axis=1)
        mixed = attention(self._heads, turn(query_key, angles), value, scope=self._scope)
        x = added(x, self._attention_output(mixed, dtype))
        inner = gelu_gated(*halves(self._up_and_gate(self._feed_forward_norm(x), dtype)))
        return added(x, self._down(inner, dtype))


class ModernBert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters, precision: Precision) -> None:
        self.vocabulary, self.dimension = parameters.words.shape
        self.longest_text = parameters.longest_text
        self._words, self._words_norm = parameters.words, parameters.words_norm.exact()
        self._norm = parameters.norm.exact()
        head_size = self.dimension // parameters.heads
        self._rotaries = {kind: Rotary(head_size, theta) for kind, theta in parameters.thetas.items()}
        parameters.layers.reverse()
        self._layers = [
            Layer(parameters.layers.pop(), parameters, precision) for _ in range(len(parameters.layers))
        ]

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        positions = positions_of(lengths)
        angles = {kind: rotary.angles(positions, lengths[-1]) for kind, rotary in self._rotaries.items()}
        attention = PackedAttention(lengths, on_step)
        x = self._words_norm(self._words[token_ids].astype(mx.float32))
        for layer in self._layers:
            x = layer(x, angles[layer.kind], attention, dtype)
            after_layer(x, on_step)
        return self._norm(x)


def read(configuration: ModernBertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the heads for training are left alone."""
    weights = weights.under_if_there("model.", "embeddings.tok_embeddings.weight")
    dimension, inner = configuration.dimension, configuration.inner
    words = weights.take("embeddings.tok_embeddings.weight", configuration.vocabulary, dimension)
    epsilon = configuration.epsilon
    return Parameters(
        words=words,
        words_norm=LayerNorm(weights.take("embeddings.norm.weight", dimension), epsilon),
        layers=[
            _layer(weights.under(f"layers.{index}."), kind, dimension, inner, epsilon, is_first=index == 0)
            for index, kind in enumerate(configuration.kinds)
        ],
        norm=LayerNorm(weights.take("final_norm.weight", dimension), epsilon),
        heads=configuration.heads,
        window=configuration.window,
        thetas=configuration.thetas,
        longest_text=configuration.positions,
    )


def _layer(  # noqa: PLR0913 - sizes
    weights: Weights, kind: str, dimension: int, inner: int, epsilon: float, *, is_first: bool
) -> LayerParameters:
    def linear(name: str, outputs: int, inputs: int) -> Linear:
        return Linear(weights.take(f"{name}.weight", outputs, inputs))

    def norm(name: str) -> LayerNorm:
        return LayerNorm(weights.take(f"{name}.weight", dimension), epsilon)

    return LayerParameters(
        kind=kind,
        # The embeddings, which the first layer takes, are normed already.
        attention_norm=None if is_first else norm("attn_norm"),
        query_key_value=linear("attn.Wqkv", 3 * dimension, dimension),
        attention_output=linear("attn.Wo", dimension, dimension),
        feed_forward_norm=norm("mlp_norm"),
        up_and_gate=linear("mlp.Wi", 2 * inner, dimension),
        down=linear("mlp.Wo", dimension, inner),
    )
