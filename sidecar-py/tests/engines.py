"""Engines of the kernels and of MLX, whatever would be chosen: a test that means one of them says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar import _device, _kernels, _mlx_engine, configurations
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import _registry, bert, qwen3
from akidb_sidecar.models._linear import Precision

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar._engine import CpuWeights
    from akidb_sidecar.models import Parameters


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


def in_mlx(folder: Path, max_tokens: int, cpu_weights: CpuWeights = "float32") -> MlxEngine:
    """Have MLX compute a model, as `_mlx_engine.load` does where the kernels cannot."""
    file = configurations.read(folder)
    parameters = _registry.read(file.configuration, Weights.read(folder))
    return mlx_engine_of(parameters, file.model_type, max_tokens, cpu_weights)


def mlx_engine_of(
    parameters: Parameters, model_type: str, max_tokens: int, cpu_weights: CpuWeights = "float32"
) -> MlxEngine:
    """Do so with tensors that are read already; on a GPU, in the type that it takes by default."""
    on_gpu = _device.chosen() == "gpu"
    precision = Precision(mx.float16 if on_gpu else mx.float32, on_gpu or cpu_weights == "quantized")
    return MlxEngine(parameters.model(precision), model_type, max_tokens, precision.dtype)
