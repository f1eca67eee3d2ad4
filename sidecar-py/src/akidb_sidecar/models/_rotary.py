"""Rotary position embeddings: pairs of a head's numbers are turned by an angle that grows with the position.

Su et al. 2021, https://arxiv.org/abs/2104.09864, in the form of most checkpoints: number ``i`` is paired with
number ``i + size / 2``.
"""

from __future__ import annotations

from array import array

import mlx.core as mx

from akidb_sidecar._buffers import halves, to_mlx
from akidb_sidecar._errors import ModelError
from akidb_sidecar.models._functions import fused

FEWEST_POSITIONS = 512

Pair = tuple[mx.array, mx.array]
Angles = tuple[mx.array, mx.array]
"""Cosines and sines of every number of a head, ``(tokens, 1, size)`` in float32.

A number becomes itself times the cosine plus its partner times the sine, which has the sign of the sum.
"""


class Rotary:
    """Cosines and sines of the angles, computed once for as many positions as were needed so far."""

    def __init__(self, size: int, theta: float) -> None:
        if size % 2:
            raise ModelError(
                "bad_model", f"heads of {size} numbers cannot be turned: it must be an even number"
            )
        # Not by a GPU: its powers, sines and cosines are approximations, and wrong for large angles.
        self._speeds = mx.array([theta ** (-number / size) for number in range(0, size, 2)], dtype=mx.float32)
        self._cosines = self._sines = mx.zeros((0, size // 2))

    def table(self, positions: int) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, ``(positions, size / 2)``."""
        cpu = mx.Device(mx.cpu)
        places = mx.arange(positions, dtype=mx.float32, stream=cpu)
        angles = mx.multiply(mx.expand_dims(places, 1, stream=cpu), self._speeds, stream=cpu)
        cosines, sines = mx.cos(angles, stream=cpu), mx.sin(angles, stream=cpu)
        mx.eval(cosines, sines)
        return cosines, sines

    def angles(self, positions: mx.array, longest: int) -> Angles:
        """Return those of positions below ``longest``."""
        if longest > self._cosines.shape[0]:
            self._cosines, self._sines = self.table(max(FEWEST_POSITIONS, 1 << (longest - 1).bit_length()))
        cosines, sines = self._cosines[positions][:, None], self._sines[positions][:, None]
        return mx.concatenate([cosines, cosines], axis=-1), mx.concatenate([-sines, sines], axis=-1)


def positions_of(lengths: array[int]) -> mx.array:
    """Return the position of every token of texts laid one after the other."""
    positions = array("I")
    for length in lengths:
        positions.extend(range(length))
    return to_mlx(positions)


def turn(x: mx.array, angles: Angles) -> mx.array:
    """``(tokens, heads, size)`` to the same shape."""
    return _turned(x, _swapped(x), *angles)


def turn_weighted(x: mx.array, weight: mx.array, angles: Angles) -> mx.array:
    """Do so with ``x`` times ``weight``, which is ``(heads, size)`` and float32."""
    return _turned_weighted((x, _swapped(x)), (weight, _swapped(weight)), angles)


def _swapped(x: mx.array) -> mx.array:
    first, second = halves(x)
    return mx.concatenate([second, first], axis=-1)


@fused
def _turned(x: mx.array, swapped: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    return (x.astype(mx.float32) * cosines + swapped.astype(mx.float32) * sines).astype(x.dtype)


@fused
def _turned_weighted(pair: Pair, weights: Pair, angles: Angles) -> mx.array:
    x, swapped = (half.astype(mx.float32) * weight for half, weight in zip(pair, weights, strict=True))
    cosines, sines = angles
    return (x * cosines + swapped * sines).astype(pair[0].dtype)
