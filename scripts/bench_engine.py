"""Measure the embedding engine alone: no gateway, no socket.

Run it with the worker's interpreter: ``sidecar-py/.venv/bin/python scripts/bench_engine.py``. Every round
runs every case and a float32 matrix product of OpenBLAS (2048 x 2048 x 2048) with as many threads, so that
all of them see the same machine. Printed are medians. The share of the peak counts the linear layers of
all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_sidecar import _mlx_engine, _prepare
from akidb_sidecar._engine import Batch

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TOKENS = 256
SIDE = 2048
FLOP_PER_TOKEN = 6 * 2 * (4 * 384 * 384 + 2 * 384 * 1536)
GENERATOR = random.Random(1)  # noqa: S311 - repeatable

CASES = {
    "natural, 64 texts": [min(120, max(5, int(GENERATOR.lognormvariate(3.35, 0.55)))) for _ in range(64)],
    "long, 10 texts": [GENERATOR.randrange(160, 250) for _ in range(10)],
    "one of 200 tokens": [200],
    "one of 33 tokens": [33],
    "one of 12 tokens": [12],
}


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="all-minilm-l6-v2")
    flags = parser.parse_args()
    engine = _mlx_engine.load(Path(_prepare.prepare(flags.model).path), MAX_TOKENS)
    _say(f"computed by: {engine.info.blas}")
    for threads in flags.threads:
        works: dict[str, Callable[[], object]] = {"peak": _product(threads)}
        for name, lengths in CASES.items():
            batch = _batch(lengths, threads)
            works[name] = lambda batch=batch: engine.embed(batch)
        seconds = _measure(works, flags.rounds)
        peak = 2 * SIDE**3 / seconds.pop("peak")
        _say(f"\n{threads} thread(s), peak {peak / 1e9:.0f} GFLOP/s")
        for name, spent in seconds.items():
            tokens = sum(CASES[name])
            share = tokens * FLOP_PER_TOKEN / spent / peak
            _say(f"{name:20} {spent * 1e3:8.2f} ms {tokens / spent:8.0f} tokens/s  {share:.2f} of peak")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the report


def _measure(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()  # brings the weights back into the caches, as in a steady stream of such batches
            started = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def _product(threads: int) -> Callable[[], object]:
    matrix = mx.random.normal((SIDE, SIDE))
    mx.eval(matrix)

    def multiply() -> None:
        _mlx_engine.BLAS.set_threads(threads)
        mx.eval(matrix @ matrix)

    return multiply


def _batch(lengths: list[int], threads: int) -> Batch:
    token_ids = array("I", (GENERATOR.randrange(1000, 30000) for _ in range(sum(lengths))))
    return Batch(array("I", lengths).tobytes(), token_ids.tobytes(), "mean", threads)


if __name__ == "__main__":
    main()
