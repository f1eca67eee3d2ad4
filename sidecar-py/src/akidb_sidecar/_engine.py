"""What an engine is. Nothing here imports MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded engine says of itself."""

    model_type: str
    dimension: int
    max_tokens: int
    device: str
    dtype: str
    blas: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Texts to embed: ``lengths`` and ``token_ids`` are little-endian ``u32``, text after text."""

    lengths: bytes
    token_ids: bytes
    pooling: Pooling
    threads: int = 0
    """Threads to compute with; 0 leaves it to the engine."""


class Engine(Protocol):
    """Computes raw vectors."""

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself."""

    def embed(self, batch: Batch) -> memoryview:
        """Return ``count * dimension`` little-endian ``f32``: pooled, not normalised, in batch order."""
