"""Loading a model, the choice of what computes it, and the engine that has MLX compute it."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from akidb_sidecar import _blas, _device, _kernels, configurations
from akidb_sidecar._compiler import BuildError
from akidb_sidecar._engine import Batch, Engine, EngineInfo
from akidb_sidecar._errors import ModelError, OutputError
from akidb_sidecar._kernel_engine import KernelEngine

BLAS = _device.BLAS  # loaded before MLX is imported

import mlx.core as mx  # noqa: E402

from akidb_sidecar._buffers import to_bytes, to_mlx  # noqa: E402
from akidb_sidecar._pooling import pool  # noqa: E402
from akidb_sidecar._weights import Weights  # noqa: E402
from akidb_sidecar.models import _registry, bert, qwen3  # noqa: E402
from akidb_sidecar.models._bert_kernels import KernelBert  # noqa: E402
from akidb_sidecar.models._linear import Precision, RangeError  # noqa: E402
from akidb_sidecar.models._qwen3_kernels import KernelQwen3  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar._engine import CpuWeights, GpuDtype
    from akidb_sidecar._kernel_engine import KernelModel
    from akidb_sidecar._kernels import Kernels
    from akidb_sidecar.configurations import File
    from akidb_sidecar.models import Model

CACHE_LIMIT_BYTES = 64 * 1024 * 1024
"""Freed buffers that MLX may keep on a CPU: with varied shapes its cache would grow without end."""
CACHE_LIMIT_BESIDE_KERNELS_BYTES = 4 * 1024 * 1024
"""The same where MLX does no more than look rows up."""
GPU_CACHE_LIMIT_BYTES = 1024 * 1024 * 1024
"""The same on a GPU, where a new buffer costs much more, but no more than :data:`GPU_CACHE_SHARE`."""
GPU_CACHE_SHARE = 0.05
"""Of the memory that the GPU recommends to use."""


def load(
    model_path: Path,
    max_tokens: int,
    cpu_weights: CpuWeights = "float32",
    gpu_dtype: GpuDtype = "float16",
    warnings: tuple[str, ...] = (),
) -> Engine:
    """Load the model from a directory in Hugging Face layout.

    ``warnings`` are what the engine is to say about itself besides its own.
    """
    mx.set_cache_limit(_cache_limit())
    file = configurations.read(model_path)
    weights = Weights.read(model_path)
    try:
        if _device.chosen() == "gpu":
            engine: Engine = _on_gpu(file, weights, max_tokens, gpu_dtype, warnings)
        else:
            engine = _on_cpu(file, weights, max_tokens, cpu_weights, warnings)
    except RangeError:
        told = "the GPU computes in float32, which is slower, because float16 cannot hold the weights: "
        warnings += (f"{told}where they are bfloat16, `--gpu-dtype bfloat16` is faster and less exact",)
        return load(model_path, max_tokens, cpu_weights, "float32", warnings)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError("bad_model", f"`config.json` has a value that cannot be used: {error}") from error
    if isinstance(engine, KernelEngine):
        mx.set_cache_limit(CACHE_LIMIT_BESIDE_KERNELS_BYTES)
    mx.clear_cache()
    _keep_in_memory()
    return engine


def _on_gpu(
    file: File, weights: Weights, max_tokens: int, gpu_dtype: GpuDtype, warnings: tuple[str, ...]
) -> MlxEngine:
    parameters = _registry.read(file.configuration, weights)
    dtype = parameters.stored if gpu_dtype == "stored" else _DTYPES[gpu_dtype]
    precision = Precision(dtype, keep_quantized=True)
    return MlxEngine(parameters.model(precision), file.model_type, max_tokens, precision.dtype, warnings)


def _on_cpu(
    file: File, weights: Weights, max_tokens: int, cpu_weights: CpuWeights, warnings: tuple[str, ...]
) -> Engine:
    """Have our own kernels compute the model where they can, else MLX."""
    model_type, parameters = file.model_type, _registry.read(file.configuration, weights)
    keep_quantized = cpu_weights == "quantized"
    if isinstance(parameters, (bert.Parameters, qwen3.Parameters)) and not _blas.is_off():
        try:
            kernels = _kernels.load()
        except (BuildError, OSError, RuntimeError) as error:
            reason = (
                "MLX computes the model, with one thread, which takes several times as long as our kernels"
            )
            warnings += (f"{reason}: {error}",)
        else:
            model = _in_kernels(kernels, parameters, max_tokens, keep_quantized=keep_quantized)
            if model is not None:
                blas = f"{kernels.name} (MLX: {BLAS.name})"
                return KernelEngine(model, model_type, max_tokens, blas, warnings + kernels.warnings)
    # In float32: MLX's products of other types are slow on a CPU.
    precision = Precision(mx.float32, keep_quantized)
    warnings = BLAS.warnings + warnings
    return MlxEngine(parameters.model(precision), model_type, max_tokens, precision.dtype, warnings)


def _in_kernels(
    kernels: Kernels,
    parameters: bert.Parameters | qwen3.Parameters,
    max_tokens: int,
    *,
    keep_quantized: bool,
) -> KernelModel | None:
    """Return the model as the kernels compute it; ``None`` where its sizes do not fit them."""
    if isinstance(parameters, qwen3.Parameters) and KernelQwen3.fits(kernels, parameters):
        return KernelQwen3(kernels, parameters, max_tokens, keep_quantized=keep_quantized)
    if isinstance(parameters, bert.Parameters) and KernelBert.fits(kernels, parameters):
        return KernelBert(kernels, parameters)
    return None


class MlxEngine:
    """Runs a model over packed batches; on a CPU with one thread, whatever a batch says."""

    def __init__(
        self,
        model: Model,
        model_type: str,
        max_tokens: int,
        dtype: mx.Dtype,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """``dtype`` is the type of products, as long as the numbers of a batch fit."""
        self._model = model
        self._dtype = dtype
        self._steps_done = self._batches_done = 0
        # Two threads of OpenBLAS gain a fifth on an idle machine. On a busy one, where they wait for each
        # other's core in every small product of attention, they take sixteen times as long.
        BLAS.set_threads(1)
        self._info = EngineInfo(
            model_type=model_type,
            dimension=model.dimension,
            max_tokens=min(max_tokens, model.longest_text),
            device=_device.chosen(),
            dtype=_name(dtype),
            blas=BLAS.name,
            warnings=warnings,
        )

    @property
    def info(self) -> EngineInfo:
        """What the engine says about itself."""
        return self._info

    def steps_done(self) -> int:
        """Return the number of batches computed so far, and of layers and blocks of long ones."""
        return self._steps_done

    def embed(self, batch: Batch) -> memoryview:
        """Return raw vectors; raise :class:`OutputError` when one of them cannot be right."""
        batch.check(self._model.vocabulary, self._model.longest_text)
        vectors = self._computed(batch, self._dtype)
        if vectors is None and self._dtype == mx.float16:
            # Numbers may have become too large for it.
            vectors = self._computed(batch, mx.float32)
            if vectors is not None and not self._batches_done:
                self._stay_in_float32()
        if vectors is None:
            raise OutputError("a vector is not finite, or zero")
        self._batches_done += 1
        return to_bytes(vectors)

    def _computed(self, batch: Batch, dtype: mx.Dtype) -> mx.array | None:
        """Return the vectors, with products in a type; ``None`` where one is not finite, or zero."""
        token_ids, lengths, order = _sorted_by_length(batch)
        hidden = self._model(token_ids, lengths, self._step, dtype)
        starts = array("I", accumulate(lengths, initial=0))[:-1]
        vectors = pool(hidden, batch.pooling, to_mlx(starts), to_mlx(lengths))
        vectors = mx.contiguous(vectors[order])
        squares = mx.sum(vectors * vectors, axis=1)
        usable = mx.all((squares > 0) & (squares < mx.inf))
        mx.eval(vectors, usable)
        self._step()
        return vectors if usable.item() else None

    def _stay_in_float32(self) -> None:
        """Do so where the first batch, with which a worker warms up, already has too large numbers."""
        self._dtype = mx.float32
        told = "the GPU computes in float32, which is slower, because numbers of this model become too large "
        told += "for float16: where the weights are bfloat16, `--gpu-dtype bfloat16` is faster and less exact"
        self._info = replace(self._info, dtype=_name(mx.float32), warnings=(*self._info.warnings, told))

    def _step(self) -> None:
        self._steps_done += 1


_DTYPES: dict[str, mx.Dtype] = {
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "float32": mx.float32,
}


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _cache_limit() -> int:
    if _device.chosen() == "cpu":
        return CACHE_LIMIT_BYTES
    return min(GPU_CACHE_LIMIT_BYTES, int(GPU_CACHE_SHARE * _recommended_bytes()))


def _keep_in_memory() -> None:
    """Have macOS keep the weights in the GPU's reach, where another program needs memory, too."""
    if _device.chosen() == "gpu":
        with contextlib.suppress(RuntimeError, ValueError):  # older than macOS 15, or not Metal
            mx.set_wired_limit(min(_recommended_bytes(), mx.get_active_memory() + _cache_limit()))


def _recommended_bytes() -> int:
    """Return how much memory the GPU recommends to use; what allows the whole cache where it does not say."""
    with contextlib.suppress(RuntimeError):
        told = mx.device_info(mx.Device(mx.gpu)).get("max_recommended_working_set_size", 0)
        if told:
            return int(told)
    return int(GPU_CACHE_LIMIT_BYTES / GPU_CACHE_SHARE)


def _sorted_by_length(batch: Batch) -> tuple[mx.array, array[int], mx.array]:
    """Return the batch with its texts sorted by length, and for each text its place among the sorted ones."""
    lengths = array("I", batch.lengths)
    ends = list(accumulate(lengths))
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    token_ids = memoryview(batch.token_ids).cast("I")
    ordered = b"".join(token_ids[ends[text] - lengths[text] : ends[text]] for text in by_length)
    place = array("I", bytes(4 * len(lengths)))
    for position, text in enumerate(by_length):
        place[text] = position
    return to_mlx(memoryview(ordered).cast("I")), array("I", sorted(lengths)), to_mlx(place)
