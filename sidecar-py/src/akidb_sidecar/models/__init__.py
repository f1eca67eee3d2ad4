"""Model architectures, one a file; each has ``read(configuration, weights)``, see ``_registry``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    import mlx.core as mx

    from akidb_sidecar.models._linear import Precision


class Model(Protocol):
    """An encoder over packed texts."""

    dimension: int
    vocabulary: int
    longest_text: int
    """In tokens: what its table of positions holds."""

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        """Return ``(tokens, dimension)`` in float32 for texts one after the other, ``lengths`` sorted.

        ``on_step`` is called whenever a part of a long batch has been computed. Products are computed in
        ``dtype``, most often that in which the weights are held.
        """


class Parameters(Protocol):
    """The tensors of a model, not yet read from their file."""

    @property
    def stored(self) -> mx.Dtype:
        """Type in which the weights are stored."""

    def model(self, precision: Precision) -> Model:
        """Return the model, computed by MLX; it takes the layers out of these parameters."""
