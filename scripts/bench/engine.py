"""In a child process of the workers' environment: our engine alone, and how fast the BLAS multiplies.

``python -m bench.engine MODEL CORPUS``; see :mod:`bench.child`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import child

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 2048
PRODUCTS = 5


def main() -> None:
    """Load the model, then measure what is asked for."""
    model, corpus = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    from akidb_sidecar import _mlx_engine  # noqa: PLC0415 - it makes the BLAS global
    from akidb_sidecar._engine import Batch  # noqa: PLC0415

    engine = _mlx_engine.load(model, corpus["max_tokens"])

    def call(texts: list[list[int]], threads: int) -> Callable[[], object]:
        lengths = array("I", (len(text) for text in texts))
        token_ids = array("I", (token for text in texts for token in text))
        batch = Batch(lengths.tobytes(), token_ids.tobytes(), "mean", threads)
        return lambda: engine.embed(batch)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        threads = question["threads"]
        if question["what"] == "peak":
            return {"flops": _peak(threads)}
        texts, size = corpus["ids"][question["shape"]], question["per_request"]
        batches = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        calls = [
            (size, sum(map(len, batch)), call(batch, threads)) for batch in batches[: question["batches"]]
        ]
        calls[0][2]()  # the first call of a shape allocates
        return child.timed(calls, question["seconds"])

    child.serve(answer)


def _peak(threads: int) -> float:
    """Return the float32 matrix product rate in FLOP/s, as ``akidb_sidecar doctor`` measures it."""
    import mlx.core as mx  # noqa: PLC0415

    from akidb_sidecar import _blas  # noqa: PLC0415

    _blas.load().set_threads(threads)
    matrix = mx.random.normal((SIDE, SIDE))
    mx.eval(matrix)
    seconds = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(seconds)


if __name__ == "__main__":
    main()
