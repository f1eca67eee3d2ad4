"""MLX's quantized matrices: small integers, and a scale and a bias for each group of them in a row.

A weight is ``integer * scale + bias``. Which bits and groups a checkpoint has is said in the
``quantization`` of its ``config.json``, for all of its matrices or for single ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
BITS_PER_WORD = 32


@dataclass(frozen=True)
class Layout:
    """How the integers of a matrix are stored."""

    group_size: int
    bits: int

    def shape(self, inputs: int) -> tuple[int, int]:
        """Return words and groups of a row of so many weights."""
        if inputs % self.group_size:
            raise ModelError(
                "bad_model", f"rows of {inputs} weights have no whole number of groups of {self.group_size}"
            )
        return inputs * self.bits // BITS_PER_WORD, inputs // self.group_size


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


class Quantization:
    """Which matrices of a checkpoint are stored in which layout."""

    def __init__(self, default: Layout, single: Mapping[str, Layout]) -> None:
        self._default = default
        self._single = single

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Quantization | None:
        """Read ``config.json``; ``None`` where nothing is said of it."""
        stated = config.get("quantization") or config.get("quantization_config")
        if stated is None:
            return None
        if not isinstance(stated, dict):
            raise ModelError("bad_model", "`quantization` in `config.json` is not an object")
        single = {name: _layout(entry, stated) for name, entry in stated.items() if isinstance(entry, dict)}
        return cls(_layout(stated, {}), single)

    def layout(self, name: str) -> Layout:
        """Return the layout of a matrix."""
        return self._single.get(name) or self._single.get(f"model.{name}", self._default)


def _layout(entry: dict[str, object], default: dict[str, object]) -> Layout:
    method = entry.get("quant_method", entry.get("mode", default.get("mode", "affine")))
    if method != "affine":
        raise ModelError(
            "unsupported_model", f"weights quantized by `{method}` are not supported; MLX's `affine` ones are"
        )
    group_size = entry.get("group_size", default.get("group_size"))
    bits = entry.get("bits", default.get("bits"))
    if group_size not in GROUP_SIZES or bits not in BITS or isinstance(bits, bool):
        raise ModelError(
            "unsupported_model",
            f"`quantization` in `config.json` has {bits} bits in groups of {group_size}; supported are "
            f"{', '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUP_SIZES))}",
        )
    return Layout(group_size, bits)
