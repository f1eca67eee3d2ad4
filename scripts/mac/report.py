"""A list of checks, each with what is expected and what was found, as a page to send."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.progress import Progress

OK, NOT_OK, NOT_APPLICABLE = "ok", "**not ok**", "not applicable"


class NotApplicableError(Exception):
    """A check that means nothing on this system; the message says why."""


@dataclass(frozen=True)
class Check:
    """One line of the list. ``find`` returns whether it is as expected, and what was found."""

    name: str
    expected: str
    find: Callable[[], tuple[bool, str]]


@dataclass(frozen=True)
class Row:
    """What came of a check."""

    check: Check
    found: str
    verdict: str
    seconds: float


def go_through(checks: Iterable[Check], progress: Progress) -> list[Row]:
    """Do all of them; one that breaks is not ok, and the others go on."""
    rows = []
    for check in checks:
        progress.say(check.name)
        started = time.monotonic()
        try:
            is_ok, found = check.find()
            verdict = OK if is_ok else NOT_OK
        except NotApplicableError as error:
            found, verdict = str(error), NOT_APPLICABLE
        except Exception as error:  # noqa: BLE001 - whatever breaks is a finding
            found, verdict = f"{type(error).__name__}: {error}", NOT_OK
        rows.append(Row(check, found, verdict, time.monotonic() - started))
        progress.say(f"  {verdict.strip('*')}: {found}")
    return rows


def page(rows: Iterable[Row]) -> str:
    """Return them as Markdown."""
    lines = [
        "# Report of `make mac-report`",
        "",
        f"Made at {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.",
        "It names no person, host, folder or serial number.",
        "",
        "| check | expected | found | verdict | seconds |",
        "|---|---|---|---|---:|",
    ]
    for row in rows:
        cells = (row.check.name, row.check.expected, row.found, row.verdict, f"{row.seconds:.1f}")
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace(str(Path.home()), "~").replace("|", "\\|").split())
