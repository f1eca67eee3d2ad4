"""Linear layers, and the types in which they are held and computed.

A CPU computes everything in float32. A GPU computes products in the type of ``--gpu-dtype``, float16 unless
told otherwise, and all else in float32: what flows past the layers, norms, softmax and pooling. With the 8
bits of bfloat16 the vectors of a small 4-bit Qwen3 have a cosine of 0.998 to what they should be, with the 11
bits of float16 one of 0.99996 (docs/MODELS.md).

The price of float16 is its range. Weights that do not fit are a :class:`RangeError`, and whoever loads the
model takes float32. Numbers that become too large while a text is computed make its vector infinite, or not a
number; whoever computes it does so once more in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from akidb_sidecar._quantization import Matrix, QuantizedMatrix, joined, plain

LARGEST_ERROR = 2.0**-9
"""Of weights in float16, relative, as a root mean square: that of bfloat16. In its range it is 2^-12."""


class RangeError(Exception):
    """Weights that float16 cannot hold."""


@dataclass(frozen=True)
class Linear:
    """A weight of the shape ``(outputs, inputs)``, and perhaps a bias."""

    weight: Matrix
    bias: mx.array | None = None

    def __call__(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, outputs)``, computed in a type."""
        x, bias = x.astype(dtype), None if self.bias is None else self.bias.astype(dtype)
        if isinstance(self.weight, QuantizedMatrix):
            product = self.weight.with_scales_of(dtype).product(x)
            return product if bias is None else product + bias
        weight = self.weight.astype(dtype).T
        return x @ weight if bias is None else mx.addmm(bias, x, weight)


@dataclass(frozen=True)
class Linears:
    """Several linear layers with one input; their outputs are concatenated."""

    parts: tuple[Linear, ...]

    def __call__(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """``(tokens, inputs)`` to ``(tokens, all outputs)``, computed in a type."""
        outputs = [part(x, dtype) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=-1)


@dataclass(frozen=True)
class Precision:
    """How a model holds its weights."""

    dtype: mx.Dtype
    """In which it computes products."""
    keep_quantized: bool = False
    """Dequantize nothing."""

    def linear(self, linear: Linear) -> Linear:
        """Return a linear layer as it is held; what was read for it can be freed then."""
        return self.linears(linear).parts[0]

    def linears(self, *parts: Linear) -> Linears:
        """Return linear layers with one input, made one where they are stored alike."""
        matrix = joined([self._matrix(part.weight) for part in parts])
        biases = [held(part.bias, self.dtype) for part in parts if part.bias is not None]
        if matrix is None or 0 < len(biases) < len(parts):
            return Linears(tuple(self.linear(part) for part in parts))
        bias = mx.concatenate(biases) if biases else None
        mx.eval(matrix if isinstance(matrix, mx.array) else matrix.arrays(), [] if bias is None else bias)
        return Linears((Linear(matrix, bias),))

    def _matrix(self, matrix: Matrix) -> Matrix:
        if not isinstance(matrix, QuantizedMatrix):
            return held(matrix, self.dtype)
        if not self.keep_quantized:
            return held(plain(matrix), self.dtype)
        scales, biases = held(matrix.scales, self.dtype), held(matrix.biases, self.dtype)
        return QuantizedMatrix(matrix.weight, scales, biases, matrix.layout)


def held(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return weights in a type; raise :class:`RangeError` where float16 is too narrow for them."""
    converted = values.astype(dtype)
    if dtype == mx.float16 and values.dtype != mx.float16:
        exact = values.astype(mx.float32)
        error = converted.astype(mx.float32) - exact
        is_too_large = mx.any(mx.isinf(converted) & ~mx.isinf(exact))
        is_too_small = mx.sum(error * error) > LARGEST_ERROR**2 * mx.sum(exact * exact)
        if (is_too_large | is_too_small).item():
            raise RangeError
    return converted
