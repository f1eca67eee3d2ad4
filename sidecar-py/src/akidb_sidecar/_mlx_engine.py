"""Loading a model, the choice of what computes it, and the engine that has MLX compute it."""

from __future__ import annotations

from array import array
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
from akidb_sidecar.models._qwen3_kernels import KernelQwen3  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar._engine import CpuWeights, GpuDtype
    from akidb_sidecar._kernel_engine import KernelModel
    from akidb_sidecar._kernels import Kernels
    from akidb_sidecar.configurations import File
    from akidb_sidecar.models import Model

CACHE_LIMIT_BYTES = 64 * 1024 * 1024
"""Freed buffers that MLX may keep: with varied shapes its cache would grow without end."""
CACHE_LIMIT_BESIDE_KERNELS_BYTES = 4 * 1024 * 1024
"""The same where MLX does no more than look rows up."""


def load(
    model_path: Path,
    max_tokens: int,
    cpu_weights: CpuWeights = "float32",
    gpu_dtype: GpuDtype = "float16",  # noqa: ARG001 - the models do not obey it yet
    warnings: tuple[str, ...] = (),
) -> Engine:
    """Load the model from a directory in Hugging Face layout.

    ``warnings`` are what the engine is to say of itself besides its own.
    """
    mx.set_cache_limit(CACHE_LIMIT_BYTES)
    file = configurations.read(model_path)
    weights = Weights.read(model_path)
    try:
        engine = _choose(file, weights, max_tokens, cpu_weights, warnings)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError("bad_model", f"`config.json` has a value that cannot be used: {error}") from error
    if isinstance(engine, KernelEngine):
        mx.set_cache_limit(CACHE_LIMIT_BESIDE_KERNELS_BYTES)
    mx.clear_cache()
    return engine


def _choose(
    file: File, weights: Weights, max_tokens: int, cpu_weights: CpuWeights, warnings: tuple[str, ...]
) -> Engine:
    """Decide what computes the model: our own kernels on a CPU where they can, else MLX."""
    model_type, parameters = file.model_type, _registry.read(file.configuration, weights)
    keep_quantized = cpu_weights == "quantized"
    use_mlx = _is_on_gpu() or _blas.is_off()
    if isinstance(parameters, (bert.Parameters, qwen3.Parameters)) and not use_mlx:
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
    return MlxEngine(parameters.model(keep_quantized=keep_quantized), model_type, max_tokens, warnings)


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
        self, model: Model, model_type: str, max_tokens: int, warnings: tuple[str, ...] = ()
    ) -> None:
        self._model = model
        self._steps_done = 0
        on_gpu = _is_on_gpu()
        # Two threads of OpenBLAS gain a fifth on an idle machine. On a busy one, where they wait for each
        # other's core in every small product of attention, they take sixteen times as long.
        BLAS.set_threads(1)
        self.info = EngineInfo(
            model_type=model_type,
            dimension=model.dimension,
            max_tokens=min(max_tokens, model.longest_text),
            device="gpu" if on_gpu else "cpu",
            dtype=str(model.dtype).removeprefix("mlx.core."),
            blas=BLAS.name,
            warnings=() if on_gpu else BLAS.warnings + warnings,
        )

    def steps_done(self) -> int:
        """Return the number of batches computed so far, and of layers and blocks of long ones."""
        return self._steps_done

    def embed(self, batch: Batch) -> memoryview:
        """Return raw vectors; raise :class:`OutputError` when one of them cannot be right."""
        batch.check(self._model.vocabulary, self._model.longest_text)
        token_ids, lengths, order = _sorted_by_length(batch)
        hidden = self._model(token_ids, lengths, self._step)
        starts = array("I", accumulate(lengths, initial=0))[:-1]
        vectors = pool(hidden, batch.pooling, to_mlx(starts), to_mlx(lengths))
        vectors = mx.contiguous(vectors[order].astype(mx.float32))
        squares = mx.sum(vectors * vectors, axis=1)
        usable = mx.all((squares > 0) & (squares < mx.inf))
        mx.eval(vectors, usable)
        self._step()
        if not usable.item():
            raise OutputError("a vector is not finite, or zero")
        return to_bytes(vectors)

    def _step(self) -> None:
        self._steps_done += 1


def _is_on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


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
