"""In a child process of the workers' environment: our engine alone, and how fast the BLAS multiplies.

``python -m bench.engine MODEL CORPUS``; see :mod:`bench.child`.
"""

from __future__ import annotations

import json
import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import child

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCTS = 5


def main() -> None:
    """Load the model, then measure what is asked for."""
    model, corpus = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    from akidb_sidecar import _doctor, _mlx_engine  # noqa: PLC0415 - it makes the BLAS global
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
            return {"flops": _doctor.matmul_flops(_mlx_engine.BLAS, threads, PRODUCTS)}
        texts, size = corpus["ids"][question["shape"]], question["per_request"]
        batches = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        calls = [
            (size, sum(map(len, batch)), call(batch, threads)) for batch in batches[: question["batches"]]
        ]
        calls[0][2]()  # the first call of a shape allocates
        return child.timed(calls, question["seconds"])

    child.serve(answer)


if __name__ == "__main__":
    main()
