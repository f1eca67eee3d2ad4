"""ModernBERT: BERT with what was learned since, and for texts of 8,192 tokens.

Warner et al. 2024, https://arxiv.org/abs/2412.13663. Layers of attention with rotary positions and of a
gated feed-forward, each behind a layer norm and beside a residual, without biases. Some layers attend to all
of a text, the others to a window around each token, with rotary angles of their own. Linear layers run over
the real tokens of all texts at once; only attention knows texts (see ``_windowed_attention``). The scale of
the scores is folded into the weights of the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.configurations.modernbert import IN_WINDOW
from akidb_sidecar.models import TOKENS_PER_STEP
from akidb_sidecar.models._functions import SCORE_SCALE, gelu, working_dtype
from akidb_sidecar.models._rotary import Rotary, positions_of, turn
from akidb_sidecar.models._windowed_attention import WindowedAttention

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import ModernBertConfiguration


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of one layer; matrices are ``(outputs, inputs)``."""

    kind: str
    attention_norm: mx.array | None
    query_key_value: mx.array
    attention_output: mx.array
    feed_forward_norm: mx.array
    up_and_gate: mx.array
    down: mx.array


@dataclass(frozen=True)
class Parameters:
    """The tensors of the encoder, not yet read from their file.

    Whoever builds a model takes the layers out one by one, so that no weight is held twice.
    """

    words: mx.array
    """As they are stored; everything else is of the type to compute with."""
    words_norm: mx.array
    layers: list[LayerParameters]
    norm: mx.array
    heads: int
    window: int
    """Tokens to each side of a token, in the layers that attend to a window."""
    thetas: dict[str, float]
    """Of each kind of layer."""
    epsilon: float
    longest_text: int

    def model(self, *, keep_quantized: bool) -> ModernBert:
        """Return the model, computed by MLX."""
        del keep_quantized  # it never is quantized
        return ModernBert(self)


class Layer:
    """One layer."""

    def __init__(self, layer: LayerParameters, model: Parameters) -> None:
        self._heads, self._epsilon = model.heads, model.epsilon
        self.kind = layer.kind
        self._window = model.window if layer.kind == IN_WINDOW else None
        dimension = layer.query_key_value.shape[1]
        query, key_value = mx.split(layer.query_key_value, [dimension])
        scale = SCORE_SCALE / (dimension // model.heads) ** 0.5
        self._query_key_value = mx.concatenate([query * scale, key_value])
        self._attention_norm, self._attention_output = layer.attention_norm, layer.attention_output
        self._feed_forward_norm = layer.feed_forward_norm
        self._up_and_gate, self._down = layer.up_and_gate, layer.down
        # Before the next layer, so that what was read for this one can be freed.
        mx.eval(self._query_key_value, self._attention_output, self._up_and_gate, self._down)

    def __call__(
        self, x: mx.array, angles: tuple[mx.array, mx.array], attention: WindowedAttention
    ) -> mx.array:
        """``(tokens, dimension)`` to the same shape."""
        normed = x if self._attention_norm is None else layer_norm(x, self._attention_norm, self._epsilon)
        query_key_value = (normed @ self._query_key_value.T).reshape(x.shape[0], 3 * self._heads, -1)
        query_key, value = mx.split(query_key_value, [2 * self._heads], axis=1)
        query, key = mx.split(turn(query_key, angles), 2, axis=1)
        x = x + attention(query, key, value, self._window) @ self._attention_output.T
        normed = layer_norm(x, self._feed_forward_norm, self._epsilon)
        up, gate = mx.split(normed @ self._up_and_gate.T, 2, axis=-1)
        return x + (gelu(up) * gate) @ self._down.T


class ModernBert:
    """The encoder; see :class:`akidb_sidecar.models.Model`."""

    def __init__(self, parameters: Parameters) -> None:
        self.vocabulary, self.dimension = parameters.words.shape
        self.dtype = parameters.norm.dtype
        self.longest_text = parameters.longest_text
        self._words, self._words_norm = parameters.words, parameters.words_norm
        self._epsilon, self._norm = parameters.epsilon, parameters.norm
        head_size = self.dimension // parameters.heads
        self._rotaries = {kind: Rotary(head_size, theta) for kind, theta in parameters.thetas.items()}
        parameters.layers.reverse()
        self._layers = [Layer(parameters.layers.pop(), parameters) for _ in range(len(parameters.layers))]

    def __call__(self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts sorted by length."""
        positions = positions_of(lengths)
        angles = {
            kind: rotary.angles(positions, lengths[-1], self.dtype) for kind, rotary in self._rotaries.items()
        }
        attention = WindowedAttention(lengths, on_step)
        x = layer_norm(self._words[token_ids].astype(self.dtype), self._words_norm, self._epsilon)
        for layer in self._layers:
            x = layer(x, angles[layer.kind], attention)
            if token_ids.size > TOKENS_PER_STEP:
                mx.eval(x)
                on_step()
        return layer_norm(x, self._norm, self._epsilon)


def layer_norm(x: mx.array, weight: mx.array, epsilon: float) -> mx.array:
    """Scale every row to mean 0 and variance 1, then by ``weight``."""
    return mx.fast.layer_norm(x, weight, None, epsilon)


def read(configuration: ModernBertConfiguration, weights: Weights) -> Parameters:
    """Take the encoder's tensors; those of the heads for training are left alone."""
    weights = weights.under_if_there("model.", "embeddings.tok_embeddings.weight")
    dimension, inner = configuration.dimension, configuration.inner
    words = weights.take("embeddings.tok_embeddings.weight", configuration.vocabulary, dimension)
    weights = weights.converted(working_dtype(words.dtype))
    return Parameters(
        words=words,
        words_norm=weights.take("embeddings.norm.weight", dimension),
        layers=[
            _layer(weights.under(f"layers.{index}."), kind, dimension, inner, is_first=index == 0)
            for index, kind in enumerate(configuration.kinds)
        ],
        norm=weights.take("final_norm.weight", dimension),
        heads=configuration.heads,
        window=configuration.window,
        thetas=configuration.thetas,
        epsilon=configuration.epsilon,
        longest_text=configuration.positions,
    )


def _layer(weights: Weights, kind: str, dimension: int, inner: int, *, is_first: bool) -> LayerParameters:
    return LayerParameters(
        kind=kind,
        # The embeddings, which the first layer takes, are normed already.
        attention_norm=None if is_first else weights.take("attn_norm.weight", dimension),
        query_key_value=weights.take("attn.Wqkv.weight", 3 * dimension, dimension),
        attention_output=weights.take("attn.Wo.weight", dimension, dimension),
        feed_forward_norm=weights.take("mlp_norm.weight", dimension),
        up_and_gate=weights.take("mlp.Wi.weight", 2 * inner, dimension),
        down=weights.take("mlp.Wo.weight", dimension, inner),
    )
