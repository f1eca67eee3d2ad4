"""Model architectures, one a file; each has ``read(configuration, weights)``, see ``_registry``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    import mlx.core as mx

TOKENS_PER_STEP = 1024
"""Batches with more tokens are evaluated part by part, so that somebody can see how they get on."""


class Model(Protocol):
    """An encoder over packed texts."""

    dimension: int
    dtype: mx.Dtype
    vocabulary: int
    longest_text: int
    """In tokens: what its table of positions holds."""

    def __call__(self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None]) -> mx.array:
        """Return ``(tokens, dimension)`` for texts laid one after the other, ``lengths`` in tokens, sorted.

        ``on_step`` is called whenever a part of a long batch has been computed.
        """


class Parameters(Protocol):
    """The tensors of a model, not yet read from their file."""

    def model(self, *, keep_quantized: bool) -> Model:
        """Return the model, computed by MLX; it takes the layers out of these parameters.

        ``keep_quantized``: on a CPU, dequantize nothing. Most models are never quantized.
        """
