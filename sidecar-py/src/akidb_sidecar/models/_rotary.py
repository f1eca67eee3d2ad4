"""Rotary position embeddings: pairs of a head's numbers are turned by an angle that grows with the position.

Su et al. 2021, https://arxiv.org/abs/2104.09864, in the form of most checkpoints: number ``i`` is paired with
number ``i + size / 2``.
"""

from __future__ import annotations

from array import array

import mlx.core as mx

from akidb_sidecar._buffers import to_mlx
from akidb_sidecar._errors import ModelError

FEWEST_POSITIONS = 512


class Rotary:
    """Cosines and sines of the angles, computed once for as many positions as were needed so far."""

    def __init__(self, size: int, theta: float) -> None:
        if size % 2:
            raise ModelError(
                "bad_model", f"heads of {size} numbers cannot be turned: it must be an even number"
            )
        self._speeds = theta ** (mx.arange(0, size, 2, dtype=mx.float32) / -size)
        self._cosines = self._sines = mx.zeros((0, size // 2))

    def table(self, positions: int) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, ``(positions, size / 2)``."""
        angles = mx.arange(positions, dtype=mx.float32)[:, None] * self._speeds
        cosines, sines = mx.cos(angles), mx.sin(angles)
        mx.eval(cosines, sines)
        return cosines, sines

    def angles(self, positions: mx.array, longest: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, ``(tokens, 1, size / 2)``, for positions below ``longest``."""
        if longest > self._cosines.shape[0]:
            self._cosines, self._sines = self.table(max(FEWEST_POSITIONS, 1 << (longest - 1).bit_length()))
        cosines, sines = self._cosines[positions], self._sines[positions]
        return cosines[:, None].astype(dtype), sines[:, None].astype(dtype)


def positions_of(lengths: array[int]) -> mx.array:
    """Return the position of every token of texts laid one after the other."""
    positions = array("I")
    for length in lengths:
        positions.extend(range(length))
    return to_mlx(positions)


def turn(x: mx.array, angles: tuple[mx.array, mx.array]) -> mx.array:
    """``(tokens, heads, size)`` to the same shape."""
    cosines, sines = angles
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
