"""What an engine is. Nothing here imports MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from akidb_sidecar._errors import BatchError

Pooling = Literal["mean", "cls", "last"]
CpuWeights = Literal["float32", "quantized"]
"""How quantized weights are held on a CPU."""
DeviceChoice = Literal["auto", "gpu", "cpu"]
"""What is to compute; ``auto`` is a GPU where there is one that works."""
GpuDtype = Literal["float16", "bfloat16", "float32", "stored"]
"""In which type a GPU computes the products; ``stored`` is the type of the weights."""


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded engine says about itself."""

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

    def check_lengths(self, longest_text: int) -> None:
        """Raise :class:`BatchError` unless there are texts, each of 1 to ``longest_text`` tokens."""
        lengths = memoryview(self.lengths).cast("I")
        if not lengths:
            raise BatchError("the batch has no text")
        if min(lengths) == 0:
            raise BatchError("a text has no tokens")
        if max(lengths) > longest_text:
            raise BatchError(f"a text has {max(lengths)} tokens, at most {longest_text} are allowed")

    def check(self, vocabulary: int, longest_text: int) -> None:
        """Raise :class:`BatchError` unless every index into a model's tables of these sizes is in range."""
        self.check_lengths(longest_text)
        lengths, token_ids = memoryview(self.lengths).cast("I"), memoryview(self.token_ids).cast("I")
        if sum(lengths) != len(token_ids):
            raise BatchError(f"the batch has {len(token_ids)} token ids, its texts have {sum(lengths)}")
        if max(token_ids) >= vocabulary:
            raise BatchError(f"token id {max(token_ids)} is not in the model's vocabulary of {vocabulary}")


class Engine(Protocol):
    """Computes raw vectors."""

    @property
    def info(self) -> EngineInfo:
        """What the engine says about itself."""

    def steps_done(self) -> int:
        """Return a number that grows whenever a batch makes progress; any thread may ask, at any time."""

    def embed(self, batch: Batch) -> memoryview:
        """Return ``count * dimension`` little-endian ``f32``: pooled, not normalised, in batch order.

        Errors of MLX may come through: the worker tells those of the device from those of the batch.
        """
