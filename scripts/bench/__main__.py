"""``python -m bench``: measure all; print one table, write ``target/bench/results.json`` and a plot."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

from bench import environments, plot, report, systems
from bench.acceptance import targets
from bench.measure import IN_PROCESS, Corpus, Plan, Rounds
from bench.options import some_of
from bench.processes import REPOSITORY, WORKPLACE, ChildError, run_command
from bench.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

RESULTS = WORKPLACE / "results.json"
PARTIAL_RESULTS = WORKPLACE / "results-partial.json"
PLOT = REPOSITORY / "docs" / "throughput.svg"
NEEDS_PEERS = ("torch", "onnxruntime", "mosec", "mosec-2-workers", "echo-mosec-json", "echo-mosec-bytes")
NEEDS_INFINITY = ("infinity-torch", "infinity-onnx")


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when something could not be measured."""
    signal.signal(signal.SIGTERM, _interrupt)
    names = [*IN_PROCESS, *(server.name for server in systems.all_servers(WORKPLACE, WORKPLACE))]
    flags = _parser(names).parse_args(arguments)
    progress = Progress()
    only = tuple(flags.only or (name for name in names if name not in systems.NOT_BY_DEFAULT))
    broken: dict[str, str] = {}
    for environment, needed_by in (("peers", NEEDS_PEERS), ("infinity", NEEDS_INFINITY)):
        if set(only) & set(needed_by):
            try:
                environments.make(environment, progress)
            except ChildError as error:
                broken |= {name: str(error) for name in needed_by if name in only}
    model = onnx_model = environments.model_path()
    if set(only) & {*NEEDS_PEERS, *NEEDS_INFINITY} - set(broken):
        try:
            model, onnx_model = environments.models_for_peers(progress)
        except ChildError as error:
            broken |= dict.fromkeys({"onnxruntime", "infinity-onnx"} & set(only), str(error))
    runnable = tuple(name for name in only if name not in broken)
    seconds = flags.seconds or (1.0 if flags.quick else 1.5)
    plan = Plan(runnable, seconds, flags.quick, model, onnx_model)
    corpus = Corpus(model)
    number = flags.rounds or (1 if flags.quick else 3)
    rounds = Rounds(plan, corpus, progress)
    # What a hurried or partial run shows is not for the documentation and must not replace a full run.
    partial = flags.quick or bool(flags.only)
    results, drawing = (PARTIAL_RESULTS, WORKPLACE / PLOT.name) if partial else (RESULTS, PLOT)
    measured = []
    for index in range(1, number + 1):
        measured.append(rounds.run(f"round {index} of {number}"))
        summary = report.summarize(measured, plan, corpus)
        summary["broken"] = broken | summary["broken"]
        results.write_text(
            json.dumps(summary, indent=1)
        )  # also before the end: a later round may be broken off
    drawing.write_text(plot.draw(summary))
    print(report.table(summary, targets(measured, corpus.tokenizer_bytes)), file=sys.stdout)  # noqa: T201 - the table
    progress.say(f"written: {results.relative_to(REPOSITORY)}, {drawing.relative_to(REPOSITORY)}")
    return 1 if summary["broken"] else 0


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench BENCH_ARGS=...",
        description="akidb-gateway compared with its peers, in one run, in one table.",
    )
    off = ", ".join(systems.NOT_BY_DEFAULT)
    parser.add_argument(
        "--only",
        type=some_of(names),
        metavar="NAMES",
        help=f"systems, with commas; default: all but {off}. All: {', '.join(names)}",
    )
    parser.add_argument(
        "--rounds", type=_positive(int), help="times that everything is measured (default: 3)"
    )
    parser.add_argument("--seconds", type=_positive(float), help="time of each measurement (default: 1.5)")
    parser.add_argument("--quick", action="store_true", help="one round of few points, one second each")
    return parser


def _positive(number: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = number(text)
        if not 0 < value < 1000:
            raise argparse.ArgumentTypeError(f"`{text}` is not between 0 and 1000")
        return value

    return read


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
