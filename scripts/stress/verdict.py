"""What a run is held to, and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Check:
    """One line of the list."""

    what: str
    measured: str
    wanted: str
    good: bool

    @property
    def verdict(self) -> str:
        """``reached`` or ``NOT REACHED``."""
        return "reached" if self.good else "NOT REACHED"


def list_checks(checks: Sequence[Check]) -> list[str]:
    """Return a table of all checks."""
    rows = [[check.what, check.measured, check.wanted, check.verdict] for check in checks]
    return table(["what", "measured", "wanted", "verdict"], rows)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table, which is readable as plain text too."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line(head), rule, *(line(row) for row in rows)]
