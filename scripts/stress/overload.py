"""``python -m stress.overload``: offer more than can be computed, and see what becomes of it."""

from __future__ import annotations

import argparse
import json
import signal
from typing import TYPE_CHECKING

from bench.options import some_of
from bench.processes import REPOSITORY, run_command
from bench.progress import Progress

from stress import overload_page, overload_plot
from stress.overload_runs import NAMES, RUNS, WORKPLACE, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCUMENT = REPOSITORY / "docs" / "overload.md"
PLOT = REPOSITORY / "docs" / "overload.svg"
PLOTTED = ("default", "mlx")


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when a figure is not what it shall be."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags = _parser().parse_args(arguments)
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    results, all_good = {}, True
    for run in RUNS:
        if run.name in flags.only:
            results[run.name] = measure(run, flags.seconds, progress)
            # A run that is cut short leaves the figures of those before it.
            (WORKPLACE / "results.json").write_text(json.dumps(results, indent=1))
            for check in overload_page.judge(run, results[run.name]):
                all_good = all_good and check.good
                progress.say(f"{run.name}: {check.what}: {check.measured} ({check.wanted}) {check.verdict}")
    document = overload_page.write(results, arguments)
    if set(flags.only) == set(NAMES):
        DOCUMENT.write_text(document)
        plotted = {name: results[name] for name in PLOTTED}
        PLOT.write_text(overload_plot.draw(plotted, {run.name: run.title for run in RUNS}))
        progress.say("written: docs/overload.md, docs/overload.svg, target/overload/results.json")
    print(document)  # noqa: T201 - the table
    return int(not all_good)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make overload OVERLOAD_ARGS=...", description=__doc__)
    seconds = "time of each load, at least (default: 10)"
    parser.add_argument("--seconds", type=float, default=10, help=seconds)
    only = f"some of {', '.join(NAMES)}; with fewer than all docs/ is left as it is"
    parser.add_argument("--only", type=some_of(NAMES), default=list(NAMES), metavar="RUNS", help=only)
    return parser


if __name__ == "__main__":
    run_command(main)
