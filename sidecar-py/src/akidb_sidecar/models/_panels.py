"""Weights as the kernels of ``native/`` read them: panel matrices and rows, in one arena."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _kernels
from akidb_sidecar._buffers import address
from akidb_sidecar._quantization import QuantizedMatrix

if TYPE_CHECKING:
    from akidb_sidecar._kernels import Address, Kernels


class Panels:
    """Gives out memory in the order of reading."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._arena = _kernels.Arena()
        self.deepest = 0
        """Inputs of the tallest matrix that is stored as codes."""

    def matrix(self, *parts: tuple[mx.array, float]) -> _kernels.Matrix:
        """Lay the outputs of ``(outputs, inputs)`` matrices, times their factors, side by side."""
        place = first = self._arena.take(sum(weight.size for weight, _ in parts) * _kernels.FLOAT_BYTES)
        for weight, factor in parts:
            rows = contiguous(weight)
            outputs, inputs = rows.shape
            self._kernels.pack(address(rows), outputs, inputs, factor, place)
            place += rows.nbytes
        return _kernels.Matrix(numbers=first)

    def quantized_matrix(self, *parts: QuantizedMatrix) -> _kernels.Matrix:
        """Lay the outputs of matrices of one layout side by side, as they are."""
        layout, inputs = parts[0].layout, parts[0].inputs
        self.deepest = max(self.deepest, inputs)
        bits = 4 if layout.bits == 4 else 8
        place = first = self._arena.take(sum(part.outputs for part in parts) * inputs * bits // 8)
        for part in parts:
            weight = mx.contiguous(part.weight)
            mx.eval(weight)
            self._kernels.pack_codes(address(weight), part.outputs, inputs, layout.bits, place)
            place += part.outputs * inputs * bits // 8
        return _kernels.Matrix(
            codes=first,
            scales=self._by_panel(mx.concatenate([part.scales for part in parts])),
            shifts=self._by_panel(mx.concatenate([part.biases for part in parts])),
            bits=bits,
            group=layout.group_size,
        )

    def row(self, values: mx.array) -> Address:
        """Copy numbers."""
        values = contiguous(values)
        place = self._arena.take(values.nbytes)
        ctypes.memmove(place, address(values), values.nbytes)
        return place

    def _by_panel(self, values: mx.array) -> Address:
        """Copy ``(outputs, groups)`` in the order (panels, groups, columns of a panel)."""
        return self.row(values.reshape(-1, self._kernels.panel, values.shape[1]).swapaxes(1, 2))


def contiguous(values: mx.array) -> mx.array:
    """Return evaluated float32 numbers without gaps."""
    values = mx.contiguous(values.astype(mx.float32))
    mx.eval(values)
    return values
