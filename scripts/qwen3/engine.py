"""In a child process of the workers' environment: one engine, its time and its memory.

``python -m qwen3.engine MODEL MAX_TOKENS CPU_WEIGHTS``; see :mod:`bench.child` for how it is asked.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from array import array
from pathlib import Path
from typing import Any, get_args

import psutil
from bench import child
from bench.processes import peak_bytes

from akidb_sidecar._engine import CpuWeights

VOCABULARY = 2000
PRODUCTS = 3


def main() -> None:
    """Load the model, then measure what is asked for."""
    model, max_tokens, cpu_weights = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    started = time.monotonic()
    from akidb_sidecar import _doctor, _mlx_engine  # noqa: PLC0415 - it makes the BLAS global
    from akidb_sidecar._engine import Batch  # noqa: PLC0415

    how: CpuWeights = next(way for way in get_args(CpuWeights) if way == cpu_weights)
    engine = _mlx_engine.load(model, max_tokens, how)
    loaded = {
        "seconds": time.monotonic() - started,
        "resident_bytes": resident_bytes(),
        "peak_bytes": peak_bytes(),
    }
    generator = random.Random(1)  # noqa: S311 - repeatable

    def embed(lengths: list[int], threads: int) -> float:
        ids = array("I", (generator.randrange(VOCABULARY) for _ in range(sum(lengths))))
        batch = Batch(array("I", lengths).tobytes(), ids.tobytes(), "last", threads)
        begun = time.perf_counter()
        engine.embed(batch)
        return time.perf_counter() - begun

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["what"] == "loaded":
            return {**loaded, "blas": engine.info.blas}
        threads = question["threads"]
        if question["what"] == "texts":
            for _ in range(question["texts"]):
                embed([generator.randint(1, question["longest"])], threads)
            return {"resident_bytes": resident_bytes()}
        if question["rounds"] > 1:
            embed(question["lengths"], threads)  # the first call of a shape allocates
        rounds = []
        for _ in range(question["rounds"]):
            flops = _doctor.matmul_flops(_mlx_engine.BLAS, threads, PRODUCTS)
            rounds.append((embed(question["lengths"], threads), flops))
        return {
            "seconds": statistics.median(seconds for seconds, _ in rounds),
            "peak_flops": statistics.median(flops for _, flops in rounds),
            "share": statistics.median(
                question["flop"] / seconds / flops if flops else 0.0 for seconds, flops in rounds
            ),
            "peak_bytes": peak_bytes(),
        }

    child.serve(answer)


def resident_bytes() -> int:
    """Return what this process has in memory now."""
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
