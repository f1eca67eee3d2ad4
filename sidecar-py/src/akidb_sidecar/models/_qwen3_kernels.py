"""Qwen3's forward pass on a CPU, in C: one call for a batch, see ``native/qwen3.c``.

The same network as :class:`akidb_sidecar.models.qwen3.Qwen3`. It computes in float32. The table of words
stays as it is stored, because a batch needs few of its rows. Quantized matrices are dequantized at load, or,
to save memory, panel by panel when they are needed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _kernels
from akidb_sidecar._buffers import address, to_mlx
from akidb_sidecar._quantization import QuantizedMatrix, look_up, plain
from akidb_sidecar.models._panels import Panels, contiguous
from akidb_sidecar.models._rotary import Rotary

if TYPE_CHECKING:
    from akidb_sidecar._engine import Pooling
    from akidb_sidecar._kernels import Kernels
    from akidb_sidecar.models._linear import Linear
    from akidb_sidecar.models.qwen3 import LayerParameters, Parameters


class KernelQwen3:
    """The decoder with its pooling. Its weights are one block of memory, in the order of reading."""

    def __init__(
        self, kernels: Kernels, parameters: Parameters, max_tokens: int, *, keep_quantized: bool
    ) -> None:
        """Take the parameters' layers one by one, so that no weight is held twice.

        No text has more than ``max_tokens``.
        """
        self._keep_quantized = keep_quantized
        layers = parameters.layers
        self.dimension, self.vocabulary = parameters.dimension, parameters.vocabulary
        self.longest_text = min(parameters.longest_text, max_tokens)
        self._kernels = kernels
        self._words = parameters.words
        self._panels = Panels(kernels)
        cosines, sines = Rotary(parameters.head_size, parameters.theta).table(self.longest_text)
        self._layers = (_kernels.Qwen3Layer * len(layers))()
        self._qwen3 = _kernels.Qwen3(
            layer_count=len(layers),
            width=self.dimension,
            heads=parameters.heads,
            key_heads=parameters.key_heads,
            size=parameters.head_size,
            inner=parameters.inner,
            epsilon=parameters.epsilon,
            cosines=self._panels.row(cosines),
            sines=self._panels.row(sines),
            norm=self._panels.row(parameters.norm),
            layers=self._layers,
        )
        self._scale = math.log2(math.e) / math.sqrt(parameters.head_size)
        layers.reverse()
        for index in range(len(layers)):
            self._layers[index] = self._layer(layers.pop())
        self._qwen3.deepest = self._panels.deepest

    @staticmethod
    def fits(kernels: Kernels, parameters: Parameters) -> bool:
        """Whether the kernels can compute this model."""
        widths = (parameters.dimension, parameters.head_size, parameters.inner)
        return all(width % kernels.panel == 0 for width in widths)

    def steps_done(self) -> int:
        """Return a number that grows while a batch is computed."""
        return self._kernels.steps_done()

    def embed(self, threads: int, pooling: Pooling, lengths: bytes, token_ids: bytes) -> bytearray:
        """Return ``(texts, dimension)`` float32 vectors. The lengths and token ids must be in range."""
        words = contiguous(look_up(self._words, to_mlx(memoryview(token_ids).cast("I"))))
        return self._kernels.embed(self._qwen3, threads, pooling, lengths, address(words))

    def _layer(self, layer: LayerParameters) -> _kernels.Qwen3Layer:
        row = self._panels.row
        return _kernels.Qwen3Layer(
            attention_norm=row(layer.attention_norm),
            query_key_value=self._linear(layer.query, layer.key, layer.value),
            query_norm=row(layer.query_norm.astype(mx.float32) * self._scale),
            key_norm=row(layer.key_norm),
            attention_output=self._linear(layer.attention_output),
            feed_forward_norm=row(layer.feed_forward_norm),
            gate=self._matrix(layer.gate),
            up=self._linear(layer.up),
            down=self._linear(layer.down),
        )

    def _linear(self, *parts: Linear) -> _kernels.Linear:
        biases = [linear.bias for linear in parts if linear.bias is not None]
        return _kernels.Linear(
            weight=self._matrix(*parts), bias=self._panels.row(mx.concatenate(biases)) if biases else None
        )

    def _matrix(self, *parts: Linear) -> _kernels.Matrix:
        """Lay the outputs of the parts side by side; as they are stored if that is wanted and one layout."""
        quantized = [part.weight for part in parts if isinstance(part.weight, QuantizedMatrix)]
        one_layout = len({matrix.layout for matrix in quantized}) == 1 and len(quantized) == len(parts)
        if self._keep_quantized and one_layout:
            return self._panels.quantized_matrix(*quantized)
        return self._panels.matrix(*((plain(part.weight), 1.0) for part in parts))
