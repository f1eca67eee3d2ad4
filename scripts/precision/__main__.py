"""Print the table of ``docs/MODELS.md``: the least cosine to ``transformers`` for each model and type.

The GPU's branches compute it: on a GPU, or by MLX's CPU where there is none, which rounds as a GPU does after
every operation, but may add up in another order.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, get_args

from akidb_sidecar import _blas
from akidb_sidecar._engine import Batch, GpuDtype

_blas.load()

import mlx.core as mx  # noqa: E402 - after its BLAS

HAS_GPU = mx.default_device() == mx.Device(mx.gpu)
if not HAS_GPU:
    gpu = mx.Device(mx.gpu)
    mx.default_device = lambda: gpu
    mx.disable_compile()  # on a CPU it would run a C++ compiler

from akidb_sidecar import _mlx_engine  # noqa: E402 - models ask for the device on import
from precision.golden import MODELS, cosine, read  # noqa: E402

if TYPE_CHECKING:
    from akidb_sidecar._engine import Engine
    from precision.golden import Model


def main() -> None:
    """Compute and print one row after the other."""
    dtypes = get_args(GpuDtype)
    _print(f"Computed by {'a GPU' if HAS_GPU else 'the CPU of MLX, with the branches of a GPU'}:\n")
    _print(f"| model | {' | '.join(f'`{dtype}`' for dtype in dtypes)} |")
    _print("|---|" + "---:|" * len(dtypes))
    for name in MODELS:
        model = read(name)
        cells = [_cell(model, _mlx_engine.load(model.folder, 512, gpu_dtype=dtype)) for dtype in dtypes]
        _print(f"| `{name}` | {' | '.join(cells)} |")


def _cell(model: Model, engine: Engine) -> str:
    return f"{1 - least_cosine(model, engine):.0e}".replace("e-0", "e-")


def least_cosine(model: Model, engine: Engine) -> float:
    """Return that of all texts in one batch, and of each alone."""
    batches = [[text] for text in model.texts] + [model.texts]
    least = 1.0
    for texts in batches:
        ids = array("I", [token for text in texts for token in text.token_ids])
        lengths = array("I", [len(text.token_ids) for text in texts])
        vectors = array("f", bytes(engine.embed(Batch(lengths.tobytes(), ids.tobytes(), model.pooling))))
        width = engine.info.dimension
        cosines = (
            cosine(vectors[row * width : (row + 1) * width], text.vector) for row, text in enumerate(texts)
        )
        least = min(least, *cosines) if len(texts) > 1 else min(least, next(cosines))
    return least


def _print(line: str) -> None:
    print(line, file=sys.stdout, flush=True)  # noqa: T201 - the table


if __name__ == "__main__":
    main()
