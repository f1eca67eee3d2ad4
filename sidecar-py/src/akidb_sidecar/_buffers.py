"""MLX arrays and Python's buffers: MLX speaks the buffer protocol, which its type stubs do not say."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from array import array


def to_mlx(numbers: array[int] | memoryview[int]) -> mx.array:
    """Return a copy as an array of MLX, of the same element type."""
    anything: Any = numbers
    return mx.array(anything)


def to_bytes(values: mx.array) -> memoryview[int]:
    """Return the bytes of a contiguous array, not copied."""
    anything: Any = values
    return memoryview(anything).cast("B")


def address(values: mx.array) -> int:
    """Return the address of an evaluated array's values, valid while the array lives."""
    anything: Any = values
    return ctypes.addressof(ctypes.c_char.from_buffer(anything))


def halves(x: mx.array) -> tuple[mx.array, mx.array]:
    """Cut the last axis in two."""
    first, second = mx.split(x, 2, axis=-1)
    return first, second
