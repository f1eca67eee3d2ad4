#!/usr/bin/env python3
"""The workers' command line without a model behind it: every text gets the same numbers.

The gateway runs it with ``--python``, so that what is measured is everything but computing: HTTP, JSON,
tokenizing, scheduling, the socket, and the worker's own loop.
"""

from __future__ import annotations

import sys
from array import array
from math import sin
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akidb_sidecar._engine import Batch

DIMENSION = 384
NUMBERS = [sin(index + 1) / 13.86 for index in range(DIMENSION)]
"""A vector of about length 1 with as many digits as a real one has."""


class Echo:
    """See :class:`akidb_sidecar._engine.Engine`."""

    def __init__(self, max_tokens: int) -> None:
        from akidb_sidecar._engine import EngineInfo  # noqa: PLC0415

        self.info = EngineInfo("echo", DIMENSION, max_tokens, "cpu", "float32", "none")
        self._vector = array("f", NUMBERS).tobytes()

    def steps_done(self) -> int:
        """Nothing takes long enough to be asked."""
        return 0

    def embed(self, batch: Batch) -> memoryview:
        """Return the same numbers for every text."""
        return memoryview(self._vector * (len(batch.lengths) // 4))


def main() -> int:
    """Take ``-m akidb_sidecar`` and what else the gateway puts before the command."""
    del sys.argv[1 : sys.argv.index("akidb_sidecar") + 1]
    from akidb_sidecar import _cli  # noqa: PLC0415

    settings = _cli.parse(sys.argv[1:])
    if isinstance(settings, _cli.WorkerSettings):
        from akidb_sidecar import _worker  # noqa: PLC0415

        max_tokens = settings.max_tokens
        return _worker.run(lambda: Echo(max_tokens))
    from akidb_sidecar.__main__ import main as real_main  # noqa: PLC0415

    return real_main()


if __name__ == "__main__":
    sys.exit(main())
