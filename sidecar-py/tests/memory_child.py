"""``memory_child.py MODEL LONGEST MOST_TEXTS BATCHES``: how much memory varied batches take.

Prints the largest resident memory, in bytes, after the first fifth of the batches and after all of them.
"""

from __future__ import annotations

import random
import sys
from array import array
from pathlib import Path

from bench.processes import peak_bytes

from akidb_sidecar import _device

_device.choose("cpu")  # resident memory leaves out most of a GPU's

from akidb_sidecar import _mlx_engine  # noqa: E402 - models ask for the device on import
from akidb_sidecar._engine import Batch  # noqa: E402

MODEL, (LONGEST, MOST_TEXTS, BATCHES) = Path(sys.argv[1]), map(int, sys.argv[2:])


def main() -> None:
    engine = _mlx_engine.load(MODEL, LONGEST)
    generator = random.Random(1)  # noqa: S311 - repeatable

    def embed(lengths: list[int]) -> None:
        ids = array("I", [generator.randrange(1000, 2000) for _ in range(sum(lengths))])
        engine.embed(Batch(array("I", lengths).tobytes(), ids.tobytes(), "mean", 2))

    def vary(batches: int) -> int:
        for _ in range(batches):
            embed([generator.randint(1, LONGEST) for _ in range(generator.randint(1, MOST_TEXTS))])
        return peak_bytes()

    embed([LONGEST] * MOST_TEXTS)
    print(vary(BATCHES // 5), vary(BATCHES * 4 // 5))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
