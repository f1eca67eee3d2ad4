"""BERT's forward pass on a CPU, in C: one call for a batch, see ``native/bert.c``.

The same network as :class:`akidb_sidecar.models.bert.Bert`. Measured in one process with all-minilm-l6-v2 on
a Zen 4 server with two cores, medians, one thread: 64 natural texts (2,000 tokens) 403 ms instead of 624 ms;
10 long ones 444 ms instead of 949 ms; one text of 33 tokens 7.1 ms instead of 19.4 ms; one of 12 tokens 2.9
ms instead of 13.1 ms. Two threads on idle cores take half of that. Counting linear layers alone, batches run
at 0.91 to 0.98 of OpenBLAS's largest matrix product. The process needs 125 MB instead of 315 MB.

Huge pages for the weights take 7 % off a text of 12 tokens, which reads all of them once, and 1 % off a full
batch.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _kernels
from akidb_sidecar._buffers import address
from akidb_sidecar._quantization import plain
from akidb_sidecar.models._panels import Panels, contiguous

if TYPE_CHECKING:
    from akidb_sidecar._engine import Pooling
    from akidb_sidecar._kernels import Kernels
    from akidb_sidecar.models._linear import Linear
    from akidb_sidecar.models.bert import LayerNorm, LayerParameters, Parameters


class KernelBert:
    """The encoder with its pooling. Its weights are one block of memory, in the order of reading."""

    def __init__(self, kernels: Kernels, parameters: Parameters) -> None:
        """Take the parameters' layers one by one, so that no weight is held twice."""
        layers = parameters.layers
        dimension = self.dimension = parameters.dimension
        self.vocabulary, self.longest_text = parameters.words.shape[0], parameters.positions.shape[0]
        self._panels = Panels(kernels)
        self._kernels = kernels
        self._scale = math.log2(math.e) / math.sqrt(dimension // parameters.heads)
        self._words = contiguous(parameters.words)  # stays where it is
        self._layers = (_kernels.BertLayer * len(layers))()
        self._bert = _kernels.Bert(
            layer_count=len(layers),
            width=dimension,
            heads=parameters.heads,
            inner=parameters.inner,
            epsilon=parameters.norm.epsilon,
            words=address(self._words),
            positions=self._panels.row(parameters.positions),
            padding=-1 if parameters.padding is None else parameters.padding,
            padding_position=self._panels.row(parameters.padding_position),
            norm=self._norm(parameters.norm),
            layers=self._layers,
        )
        layers.reverse()
        for index in range(len(layers)):
            self._layers[index] = self._layer(layers.pop())

    @staticmethod
    def fits(kernels: Kernels, parameters: Parameters) -> bool:
        """Whether the kernels can compute this model."""
        head_dimension = parameters.dimension // parameters.heads
        return head_dimension % kernels.panel == 0 and parameters.inner % kernels.panel == 0

    def steps_done(self) -> int:
        """Return a number that grows while a batch is computed."""
        return self._kernels.steps_done()

    def embed(self, threads: int, pooling: Pooling, lengths: bytes, token_ids: bytes) -> bytearray:
        """Return ``(texts, dimension)`` float32 vectors. The lengths and token ids must be in range."""
        ids = array("I", token_ids)
        return self._kernels.embed(self._bert, threads, pooling, lengths, ids.buffer_info()[0])

    def _layer(self, layer: LayerParameters) -> _kernels.BertLayer:
        return _kernels.BertLayer(
            query_key_value=self._linear((layer.query, self._scale), (layer.key, 1.0), (layer.value, 1.0)),
            attention_output=self._linear((layer.attention_output, 1.0)),
            attention_norm=self._norm(layer.attention_norm),
            up=self._linear((layer.up, 1.0)),
            down=self._linear((layer.down, 1.0)),
            output_norm=self._norm(layer.output_norm),
        )

    def _linear(self, *parts: tuple[Linear, float]) -> _kernels.Linear:
        """Lay the outputs of the parts, times their factors, side by side."""
        weight = self._panels.matrix(*((plain(linear.weight), factor) for linear, factor in parts))
        biases = [
            linear.bias.astype(mx.float32) * factor for linear, factor in parts if linear.bias is not None
        ]
        return _kernels.Linear(weight=weight, bias=self._panels.row(mx.concatenate(biases)))

    def _norm(self, norm: LayerNorm) -> _kernels.Norm:
        return _kernels.Norm(weight=self._panels.row(norm.weight), shift=self._panels.row(norm.bias))
