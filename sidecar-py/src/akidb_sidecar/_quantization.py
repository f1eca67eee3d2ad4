"""MLX's quantized matrices: small integers, and a scale and a bias for each group of them in a row.

A weight is ``integer * scale + bias``. Which bits and groups a matrix has is said in ``config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from akidb_sidecar.configurations._quantization import Layout


@dataclass(frozen=True)
class QuantizedMatrix:
    """``(outputs, inputs)`` weights as they are stored."""

    weight: mx.array
    """``(outputs, words)`` of ``uint32``."""
    scales: mx.array
    """``(outputs, groups)``, as ``biases``."""
    biases: mx.array
    layout: Layout

    @property
    def outputs(self) -> int:
        """Number of rows."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Number of weights of a row."""
        return int(self.scales.shape[1]) * self.layout.group_size

    def with_scales_of(self, dtype: mx.Dtype) -> QuantizedMatrix:
        """Return the same matrix, whose products are computed in this type."""
        return QuantizedMatrix(self.weight, self.scales.astype(dtype), self.biases.astype(dtype), self.layout)

    def rows(self, indices: mx.array) -> QuantizedMatrix:
        """Return some rows."""
        return QuantizedMatrix(self.weight[indices], self.scales[indices], self.biases[indices], self.layout)

    def dequantized(self) -> mx.array:
        """Return ``(outputs, inputs)`` numbers in the type of the scales."""
        return mx.dequantize(
            self.weight, self.scales, self.biases, group_size=self.layout.group_size, bits=self.layout.bits
        )

    def product(self, x: mx.array) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, outputs)``, without making the matrix plain."""
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.layout.group_size,
            bits=self.layout.bits,
        )
