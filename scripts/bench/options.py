"""Types of command-line options that several tools share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """Return a type for ``argparse`` that reads some of these names, with commas."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in names]
        if unknown:
            problem = f"`{unknown[0]}` is none of {', '.join(names)}"
            raise argparse.ArgumentTypeError(problem)
        return chosen

    return read
