"""The engine for a CPU: a model whose whole forward pass is a function of ``native/``."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Protocol

from akidb_sidecar._engine import Batch, EngineInfo

if TYPE_CHECKING:
    from akidb_sidecar._engine import Pooling


class KernelModel(Protocol):
    """A model whose forward pass is in C."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def vocabulary(self) -> int:
        """Number of its tokens."""

    @property
    def longest_text(self) -> int:
        """In tokens."""

    def steps_done(self) -> int:
        """Return a number that grows while a batch is computed."""

    def embed(self, threads: int, pooling: Pooling, lengths: bytes, token_ids: bytes) -> bytearray:
        """Return ``(texts, dimension)`` float32 vectors. The lengths and token ids must be in range."""


class KernelEngine:
    """Runs a model over packed batches; see :class:`akidb_sidecar._engine.Engine`."""

    def __init__(
        self, model: KernelModel, model_type: str, max_tokens: int, blas: str, warnings: tuple[str, ...] = ()
    ) -> None:
        self._model = model
        self._threads = _usable_cores()
        self.info = EngineInfo(
            model_type=model_type,
            dimension=model.dimension,
            max_tokens=min(max_tokens, model.longest_text),
            device="cpu",
            dtype="float32",
            blas=blas,
            warnings=warnings,
        )

    def steps_done(self) -> int:
        """Return the number of items of work done so far."""
        return self._model.steps_done()

    def embed(self, batch: Batch) -> memoryview:
        """Return raw vectors; raise :class:`OutputError` when one of them cannot be right."""
        batch.check(self._model.vocabulary, self._model.longest_text)
        self._threads = batch.threads or self._threads
        return memoryview(self._model.embed(self._threads, batch.pooling, batch.lengths, batch.token_ids))


def _usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a sandbox may forbid it
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
