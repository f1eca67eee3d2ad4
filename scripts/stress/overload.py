"""``python -m stress.overload``: offer more than can be computed, and see what becomes of it."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from typing import TYPE_CHECKING, Any

from bench import environments, texts
from bench.processes import REPOSITORY, run_command
from bench.progress import Progress

from stress import load, overload_plot
from stress.gateway import Gateway, histogram_bound
from stress.verdict import Check, list_checks, table

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKPLACE = REPOSITORY / "target" / "overload"
DOCUMENT = REPOSITORY / "docs" / "overload.md"
PLOT = REPOSITORY / "docs" / "overload.svg"
FAKE_WORKER = REPOSITORY / "sidecar-py" / "tests" / "fake_worker.py"
FAKE_MODEL = REPOSITORY / "gateway" / "tests" / "data" / "fake_model"
WORKERS = 2
FACTORS = (0.7, 2.0, 5.0, 0.7)
"""Offered load over capacity, one phase after the other; the last one shows the recovery."""
SECONDS_PER_TOKEN = 1 / 3000
"""Of a fake worker."""
FAKE_BATCH_TOKENS = 300
BODIES = 300
CAPACITY_SECONDS = 4.0
REJECTIONS = "akidb_rejection_seconds"
NORMAL_INTERVALS = 4
"""So many intervals of a quarter of a second in a row show that the overload is over."""
LEAST_GOODPUT = {2.0: 0.95, 5.0: 0.90}
MOST_OF_DEADLINE = 0.9
LONGEST_REFUSAL_SECONDS = 0.010
LONGEST_RECOVERY_SECONDS = 2.0
SETUPS = {
    "fake": "two fake workers of fixed speed, which take no processor time",
    "mlx": "two MLX workers; the load generator and the gateway share their cores",
}

HEAD = """\
# Overload

<!-- Written by the command below; change scripts/stress/overload.py, not this page. -->

What becomes of requests when more is offered than can be computed. Every request may take {deadline:g} s.
They come as independent clients send them (Poisson), whether others were answered or not, for {seconds:g} s
at each load; the last load shows how long an overload is felt. *Goodput* is tokens answered in time
over the capacity, and that is what a closed loop of {connections} connections gets. Made by

```sh
make overload{options}
```

on a machine with {cores} cores.

![Goodput and latency against the offered load](overload.svg)"""


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when the fake workers' figures are not what they shall be."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags = _parser().parse_args(arguments)
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    results = {name: measure(name, flags.seconds, flags.deadline, progress) for name in flags.only}
    (WORKPLACE / "results.json").write_text(json.dumps(results, indent=1))
    document = write(results, arguments)
    if flags.only == list(SETUPS):
        DOCUMENT.write_text(document)
        PLOT.write_text(overload_plot.draw(results, SETUPS))
        progress.say("written: docs/overload.md, docs/overload.svg, target/overload/results.json")
    print(document)  # noqa: T201 - the table
    return int(not all(check.good for check in judge(results[flags.only[0]])))


def measure(name: str, seconds: float, deadline: float, progress: Progress) -> dict[str, Any]:
    """Run all phases against one kind of workers."""
    with _gateway(name, deadline) as gateway:
        progress.say(f"{name}: recording the quiet server's answers")
        recording = load.record(gateway, _texts(name), WORKPLACE / name)
        rate = load.capacity(gateway, recording, CAPACITY_SECONDS)
        offered = ", ".join(f"{factor:g}" for factor in FACTORS)
        progress.say(f"{name}: {rate:.0f} tokens/s; offering {offered} times as much for {seconds:g} s each")
        before = gateway.metrics()
        phases = [(factor * rate, seconds) for factor in FACTORS]
        with load.open_loop(gateway, recording, phases, deadline, WORKPLACE) as generator:
            # The generator waits for the last answers, too.
            report = generator.receive()
        after = gateway.metrics()
    return {
        "capacity": rate,
        "mean_tokens": recording.mean_tokens,
        "deadline": deadline,
        "seconds": seconds,
        "rejection_p99_seconds": histogram_bound(before, after, REJECTIONS, 99),
        "recovery_seconds": recovery_seconds(report["timeline"], seconds, len(FACTORS)),
        "load": report,
    }


def recovery_seconds(timeline: list[dict[str, Any]], phase_seconds: float, phases: int) -> float | None:
    """Return the time from the end of the overload until answers are as in the first phase; ``None``: never.

    As there: everything is answered in time, and no interval's p99 is above the highest one of that phase.
    """
    end = phase_seconds * (phases - 1)
    usual = max(interval["p99_ms"] for interval in timeline if interval["second"] < phase_seconds)
    last = [interval for interval in timeline if interval["second"] >= end]
    normal = [interval["in_time"] == interval["offered"] and interval["p99_ms"] <= usual for interval in last]
    for index in range(len(last) - NORMAL_INTERVALS + 1):
        if all(normal[index : index + NORMAL_INTERVALS]):
            second: float = last[index]["second"]
            return second - end
    return None


def judge(result: dict[str, Any]) -> list[Check]:
    """Hold the figures of one kind of workers to what they shall be."""
    checks = []
    limit_ms = MOST_OF_DEADLINE * result["deadline"] * 1000
    for factor, phase in zip(FACTORS, result["load"]["phases"], strict=True):
        goodput, p99 = phase["tokens_in_time_per_second"] / result["capacity"], phase["admitted"]["p99_ms"]
        if factor in LEAST_GOODPUT:
            least = LEAST_GOODPUT[factor]
            checks.append(
                Check(f"goodput at {factor:g}x", f"{goodput:.2f}", f">= {least:.2f}", goodput >= least)
            )
            any_admitted = phase["admitted"]["count"] > 0
            shown, good = f"{p99:.0f} ms" if any_admitted else "none", any_admitted and p99 <= limit_ms
            checks.append(Check(f"p99 of admitted at {factor:g}x", shown, f"<= {limit_ms:.0f} ms", good))
    phases = result["load"]["phases"]
    late = sum(phase["late"] for phase in phases)
    bare = sum(phase["refused_without_retry_after"] for phase in phases)
    wrong = sum(phase["wrong"] for phase in phases)
    refusal, recovery = result["rejection_p99_seconds"], result["recovery_seconds"]
    refusal_ms = "not measured" if refusal is None else f"<= {refusal * 1000:.0f} ms"
    fast = refusal is not None and refusal <= LONGEST_REFUSAL_SECONDS
    recovered = recovery is not None and recovery <= LONGEST_RECOVERY_SECONDS
    shown = "never" if recovery is None else f"{recovery:.2f} s"
    return [
        *checks,
        Check("p99 of refusals, at the gateway", refusal_ms, "<= 10 ms", fast),
        Check("normal again after the overload", shown, f"<= {LONGEST_RECOVERY_SECONDS:g} s", recovered),
        Check("answers after deadline + 250 ms", str(late), "0", late == 0),
        Check("503 without Retry-After", str(bare), "0", bare == 0),
        Check("wrong vectors", str(wrong), "0", wrong == 0),
    ]


def write(results: dict[str, dict[str, Any]], arguments: Sequence[str]) -> str:
    """Return the page."""
    options = f' OVERLOAD_ARGS="{" ".join(arguments)}"' if arguments else ""
    first = next(iter(results.values()))
    head = HEAD.format(
        deadline=first["deadline"],
        seconds=first["seconds"],
        connections=load.CAPACITY_CONNECTIONS,
        options=options,
        cores=os.cpu_count(),
    )
    lines = [head]
    for name, result in results.items():
        title = f"{SETUPS[name]}: {result['capacity']:.0f} tokens/s"
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            *_figures(result),
            "",
            *list_checks(judge(result)),
        ]
    return "\n".join([*lines, ""])


def _figures(result: dict[str, Any]) -> list[str]:
    head = ["offered", "requests/s", "answered 200", "refused 503", "other", "goodput"]
    head += ["admitted p50 / p99 ms", "refused p50 / p99 ms", "generator's lag p99 ms"]
    rows = []
    for factor, phase in zip(FACTORS, result["load"]["phases"], strict=True):
        good, refused = phase["statuses"].get("200", 0), phase["statuses"].get("503", 0)
        rows.append(
            [
                f"{factor:g}x",
                f"{phase['rate']:.0f}",
                str(good),
                str(refused),
                str(phase["offered"] - good - refused),
                f"{phase['tokens_in_time_per_second'] / result['capacity']:.2f}",
                f"{phase['admitted']['p50_ms']:.0f} / {phase['admitted']['p99_ms']:.0f}" if good else "",
                f"{phase['refused']['p50_ms']:.1f} / {phase['refused']['p99_ms']:.1f}" if refused else "",
                f"{phase['lag_p99_ms']:.1f}",
            ]
        )
    return table(head, rows)


def _gateway(name: str, deadline: float) -> Gateway:
    flags = ["--request-timeout", f"{round(deadline * 1000)}ms"]
    environment = {}
    if name == "fake":
        control = WORKPLACE / "control.json"
        control.write_text(json.dumps({"delay_per_token": SECONDS_PER_TOKEN}))
        environment["AKIDB_FAKE_CONTROL"] = str(control)
        flags += ["--model", str(FAKE_MODEL), "--python", str(FAKE_WORKER)]
        flags += ["--max-batch-tokens", str(FAKE_BATCH_TOKENS)]
    else:
        flags += ["--model", environments.MODEL]
    return Gateway(f"gateway-{name}", flags, WORKERS, environment, WORKPLACE)


def _texts(name: str) -> list[str]:
    if name != "fake":
        return texts.generate("natural", BODIES)
    # The fake model's tokens are letters.
    chance = random.Random(20)  # noqa: S311 - not a secret
    lengths = [min(60, max(4, round(chance.lognormvariate(3.3, 0.45)))) for _ in range(BODIES)]
    return [" ".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=length)) for length in lengths]


def _parser() -> argparse.ArgumentParser:
    def some(text: str) -> list[str]:
        chosen = text.split(",")
        if not set(chosen) <= set(SETUPS):
            problem = f"`{text}` is not some of {', '.join(SETUPS)}"
            raise argparse.ArgumentTypeError(problem)
        return chosen

    parser = argparse.ArgumentParser(prog="make overload OVERLOAD_ARGS=...", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="time of each load (default: 10)")
    parser.add_argument("--deadline", type=float, default=1, help="seconds a request may take (default: 1)")
    only = f"some of {', '.join(SETUPS)}; with fewer than all docs/ is left as it is"
    parser.add_argument("--only", type=some, default=list(SETUPS), metavar="NAMES", help=only)
    return parser


if __name__ == "__main__":
    run_command(main)
