"""MLX's quantized matrices: small integers, and a scale and a bias for each group of them in a row.

A weight is ``integer * scale + bias``. Which bits and groups a matrix has is said in ``config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def arrays(self) -> list[mx.array]:
        """Return what it consists of."""
        return [self.weight, self.scales, self.biases]

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


Matrix = mx.array | QuantizedMatrix


def plain(matrix: Matrix) -> mx.array:
    """Return a matrix as numbers; dequantized in float32 where it is to be."""
    if isinstance(matrix, QuantizedMatrix):
        return matrix.with_scales_of(mx.float32).dequantized()
    return matrix


def look_up(words: Matrix, token_ids: mx.array) -> mx.array:
    """``(tokens,)`` to ``(tokens, dimension)``. The table stays as it is stored: few rows are needed."""
    return plain(words.rows(token_ids)) if isinstance(words, QuantizedMatrix) else words[token_ids]


def joined(matrices: Sequence[Matrix]) -> Matrix | None:
    """Return one matrix with the rows of all; ``None`` where they are not stored alike."""
    numbers = [matrix for matrix in matrices if not isinstance(matrix, QuantizedMatrix)]
    if len(numbers) == len(matrices):
        return numbers[0] if len(numbers) == 1 else mx.concatenate(numbers)
    quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedMatrix)]
    layout = quantized[0].layout
    if numbers or any(matrix.layout != layout for matrix in quantized):
        return None
    if len(quantized) == 1:
        return quantized[0]
    weight, scales, biases = zip(*(matrix.arrays() for matrix in quantized), strict=True)
    return QuantizedMatrix(
        mx.concatenate(list(weight)), mx.concatenate(list(scales)), mx.concatenate(list(biases)), layout
    )
