"""Long batches are evaluated in steps, so that somebody can see their progress, and memory stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar.models._functions import ON_CPU

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS_PER_STEP = 1024
"""Batches with more tokens are evaluated layer by layer."""
NUMBERS_PER_STEP = 0 if ON_CPU else 1 << 20
"""Only if a layer gives more than this many. On a GPU a step costs 0.3 ms, so small models do without; large
ones cannot: for 8,192 tokens an H100 that was given all layers of Qwen3-Embedding-0.6B at once took 14 GB."""


def after_layer(x: mx.array, on_step: Callable[[], None]) -> None:
    """Evaluate what a layer gave, ``(tokens, dimension)``, if that is much."""
    if x.shape[0] > TOKENS_PER_STEP and x.size > NUMBERS_PER_STEP:
        mx.eval(x)
        on_step()
