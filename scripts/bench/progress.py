"""What the run is doing, on standard error."""

from __future__ import annotations

import sys
import time


class Progress:
    """Lines with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def say(self, line: str) -> None:
        """Write a line."""
        minutes, seconds = divmod(int(self.seconds), 60)
        print(f"[{minutes:2}:{seconds:02}] {line}", file=sys.stderr, flush=True)  # noqa: T201 - standard error
