"""Weights as the kernels of ``native/`` read them: panel matrices and rows, in one piece of memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _kernels
from akidb_sidecar._buffers import address

if TYPE_CHECKING:
    from akidb_sidecar._kernels import Address, Kernels


class Panels:
    """Memory for so many floats in so many pieces. It is given out in the order of reading."""

    def __init__(self, kernels: Kernels, floats: int, pieces: int) -> None:
        self._kernels = kernels
        self._arena = _kernels.Arena(floats, pieces)

    def matrix(self, *parts: tuple[mx.array, float]) -> Address:
        """Lay the outputs of ``(outputs, inputs)`` matrices, times their factors, side by side."""
        place = first = self._arena.take(sum(weight.size for weight, _ in parts))
        for weight, factor in parts:
            rows = contiguous(weight)
            outputs, inputs = rows.shape
            self._kernels.pack(address(rows), outputs, inputs, factor, place)
            place += rows.nbytes
        return first

    def row(self, values: mx.array) -> Address:
        """Copy numbers."""
        values = contiguous(values)
        place = self._arena.take(values.size)
        ctypes.memmove(place, address(values), values.nbytes)
        return place


def contiguous(values: mx.array) -> mx.array:
    """Return evaluated float32 numbers without gaps."""
    values = mx.contiguous(values.astype(mx.float32))
    mx.eval(values)
    return values
