"""Engines of the kernels, whatever device MLX takes by default: a test that means the kernels says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar import _kernels, _mlx_engine, configurations
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import _registry, bert, qwen3

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar._engine import CpuWeights


def in_kernels(folder: Path, max_tokens: int, cpu_weights: CpuWeights = "float32") -> KernelEngine:
    """Have the kernels compute a model, as `_mlx_engine.load` does on a CPU."""
    file = configurations.read(folder)
    parameters = _registry.read(file.configuration, Weights.read(folder))
    assert isinstance(parameters, (bert.Parameters, qwen3.Parameters))
    kernels = _kernels.load()
    keep_quantized = cpu_weights == "quantized"
    model = _mlx_engine._in_kernels(kernels, parameters, max_tokens, keep_quantized=keep_quantized)
    assert model is not None
    return KernelEngine(model, file.model_type, max_tokens, kernels.name, kernels.warnings)
