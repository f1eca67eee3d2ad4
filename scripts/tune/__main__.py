"""``make tune``: compare values of the settings that matter for speed, with one model, on this machine."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench import environments
from bench.figures import medians
from bench.options import some_of
from bench.processes import run_command
from bench.progress import Progress
from stress.verdict import table

from tune.measure import WORKPLACE, Tuner
from tune.settings import NAMES, SETTINGS, TIMEOUT, TIMEOUTS, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune.settings import Load

Rounds = list[dict[str, dict[str, float]]]
ROUNDS, SECONDS, QUICK_SECONDS = 3, 2.0, 0.3


def main(arguments: Sequence[str]) -> int:
    """Run; print the tables, and write all figures to ``target/tune/results.json``."""
    flags = _parser().parse_args(arguments)
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    rounds, seconds = (1, QUICK_SECONDS) if flags.quick else (flags.rounds, flags.seconds)
    tuner = Tuner(flags.model or environments.model_path(), flags.workers, seconds)
    settings = [setting for setting in SETTINGS if setting.name in flags.only]
    measured: dict[str, dict[str, Rounds]] = {
        setting.name: {value: [] for value in setting.values} for setting in settings
    }
    for index in range(1, rounds + 1):
        for setting in settings:
            for value in setting.values:
                progress.say(f"round {index} of {rounds}: {setting.flag} {value}")
                measured[setting.name][value].append(tuner.compare(setting, value))
    overloads = {}
    for timeout in TIMEOUTS.values_seconds if TIMEOUT in flags.only else ():
        progress.say(f"--request-timeout {timeout:g}s, {TIMEOUTS.offered:g} times what can be computed")
        overloads[timeout] = tuner.overload(timeout)
    (WORKPLACE / "results.json").write_text(json.dumps(measured | {TIMEOUT: overloads}, indent=1))
    pages = [_page(setting, measured[setting.name]) for setting in settings]
    if overloads:
        pages.append(_overload_page(overloads))
    print("\n\n".join("\n".join(page) for page in pages))  # noqa: T201 - the tables
    progress.say("written: target/tune/results.json")
    return 0


def _page(setting: Setting, measured: dict[str, Rounds]) -> list[str]:
    head = [f"`{setting.flag}`", *(load.title for load in setting.loads), "memory"]
    rows = []
    for value, rounds in measured.items():
        cells = [_cell(load, rounds) for load in setting.loads]
        megabytes = medians([one["memory"] for one in rounds])["megabytes"]
        rows.append([value, *cells, f"{megabytes:.0f} MB"])
    return table(head, rows)


def _cell(load: Load, rounds: Rounds) -> str:
    figures = medians([one[load.title] for one in rounds])
    times = f"p50 {figures['p50_ms']:.1f} ms, p95 {figures['p95_ms']:.1f} ms"
    return times if load.next_to_bulk else f"{figures['texts_per_second']:.1f} texts/s, {times}"


def _overload_page(measured: dict[float, dict[str, float]]) -> list[str]:
    head = ["`--request-timeout`", "offered", "answered 200", "refused 503", "p50", "p99"]
    rows = [
        [
            f"{timeout:g}s",
            *(f"{figures[name]:.0f}" for name in ("offered", "answered", "refused")),
            *(f"{figures[name]:.0f} ms" for name in ("p50_ms", "p99_ms")),
        ]
        for timeout, figures in measured.items()
    ]
    return table(head, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make tune TUNE_ARGS=...", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a model (default: all-minilm-l6-v2)")
    workers = "where the number of workers is not what is compared (default: one per core, at most 4)"
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help=workers)
    parser.add_argument(
        "--only", type=some_of(NAMES), default=list(NAMES), help=f"some of {', '.join(NAMES)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of everything (default: {ROUNDS})")
    seconds = f"of each measurement (default: {SECONDS:g})"
    parser.add_argument("--seconds", type=float, default=SECONDS, help=seconds)
    parser.add_argument("--quick", action="store_true", help="one round, 0.3 s each: that it runs at all")
    return parser


if __name__ == "__main__":
    run_command(main)
