"""``make mac-report``: go through the list of ``docs/MAC.md`` and write what was found to a file to send."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.processes import REPOSITORY
from bench.progress import Progress

from mac.checks import all_checks
from mac.report import NOT_OK, go_through, page


def main(arguments: list[str]) -> int:
    """Exit with 1 when something is not as expected."""
    parser = argparse.ArgumentParser(prog="make mac-report", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "target" / "mac-report.md")
    parser.add_argument("--only", action="append", help="the name of a check; can be given several times")
    settings = parser.parse_args(arguments)
    checks = [check for check in all_checks() if settings.only is None or check.name in settings.only]
    if settings.only and len(checks) < len(set(settings.only)):
        parser.error(f"there is no such check; there are: {', '.join(check.name for check in all_checks())}")
    rows = go_through(checks, Progress())
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(page(rows))
    bad = [row.check.name for row in rows if row.verdict == NOT_OK]
    print(f"{settings.out}: {len(rows)} checks, not ok: {', '.join(bad) or 'none'}", file=sys.stderr)  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
