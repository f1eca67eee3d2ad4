"""What the figures of ``make overload`` are held to, and the page that shows them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stress import load
from stress.overload_runs import CAPACITY_SECONDS, RUNS, Run
from stress.verdict import Check, list_checks, table

if TYPE_CHECKING:
    from collections.abc import Sequence

Result = dict[str, Any]
MOST_OF_DEADLINE = 0.9
LONGEST_REFUSAL_SECONDS = 0.010
LONGEST_RECOVERY_SECONDS = 2.0
TOO_SHORT = "deadline_too_short"

HEAD = """\
# Overload

<!-- Written by the command below; change scripts/stress/overload*.py, not this page. -->

What becomes of requests when more is offered than can be computed. In every run one thing differs from the
first one, in which a request may take 1 s. Requests come as independent clients send them (Poisson), whether
others were answered or not, at several loads one after the other; the last load shows how long an overload is
felt. *Goodput* is tokens answered in time over the capacity, and that is what a closed loop of {connections}
connections got in {capacity_seconds:g} s before. Made by

```sh
make overload{options}
```

on a machine with {cores} cores.

![Goodput and latency against the offered load](overload.svg)"""


def judge(run: Run, result: Result) -> list[Check]:
    """Hold the figures of one run to what they shall be."""
    checks = []
    limit_ms = MOST_OF_DEADLINE * run.deadline * 1000
    phases = result["load"]["phases"]
    least_goodput = dict(run.least_goodput)
    for number, (factor, phase) in enumerate(zip(run.factors, phases, strict=True)):
        if factor not in least_goodput:
            continue
        when = f"{factor:g}x" + (" when slower" if number and run.slow_control is not None else "")
        goodput, p99 = _goodput(result, number), phase["admitted"]["p99_ms"]
        least = least_goodput[factor]
        checks.append(Check(f"goodput at {when}", f"{goodput:.2f}", f">= {least:.2f}", goodput >= least))
        any_admitted = phase["admitted"]["count"] > 0
        shown, good = f"{p99:.0f} ms" if any_admitted else "none", any_admitted and p99 <= limit_ms
        checks.append(Check(f"p99 of admitted at {when}", shown, f"<= {limit_ms:.0f} ms", good))
    refusal, recovery = result["rejection_p99_seconds"], result["recovery_seconds"]
    refusal_ms = "not measured" if refusal is None else f"<= {refusal * 1000:.0f} ms"
    fast = refusal is not None and refusal <= LONGEST_REFUSAL_SECONDS
    checks.append(Check("p99 of refusals, at the gateway", refusal_ms, "<= 10 ms", fast))
    if run.judges_recovery:
        recovered = recovery is not None and recovery <= LONGEST_RECOVERY_SECONDS
        shown = "never" if recovery is None else f"{recovery:.2f} s"
        wanted = f"<= {LONGEST_RECOVERY_SECONDS:g} s"
        checks.append(Check("normal again after the overload", shown, wanted, recovered))
    late = sum(phase["late"] for phase in phases)
    bare = sum(phase["refused_without_retry_after"] for phase in phases)
    wrong = sum(phase["wrong"] for phase in phases)
    never = sum(phase["codes"].get(TOO_SHORT, 0) for phase in phases)
    return [
        *checks,
        Check("answers after deadline + 250 ms", str(late), "0", late == 0),
        Check("503 without Retry-After", str(bare), "0", bare == 0),
        Check(f"refused as `{TOO_SHORT}`", str(never), "0", never == 0),
        Check("wrong vectors", str(wrong), "0", wrong == 0),
    ]


def write(results: dict[str, Result], arguments: Sequence[str]) -> str:
    """Return the page."""
    options = f' OVERLOAD_ARGS="{" ".join(arguments)}"' if arguments else ""
    connections, cores = load.CAPACITY_CONNECTIONS, os.cpu_count()
    head = HEAD.format(
        connections=connections, capacity_seconds=CAPACITY_SECONDS, options=options, cores=cores
    )
    runs = [run for run in RUNS if run.name in results]
    verdicts = [judge(run, results[run.name]) for run in runs]
    missed = [
        ", ".join(check.what for check in checks if not check.good) or "all reached" for checks in verdicts
    ]
    lines = [head, "", *table(["run", "verdict"], [[r.name, m] for r, m in zip(runs, missed, strict=True)])]
    for run, checks in zip(runs, verdicts, strict=True):
        result = results[run.name]
        title = f"{run.title}: {result['capacities'][0]:.0f} tokens/s"
        if run.slow_control is not None:
            title += f", then {result['capacities'][-1]:.0f}"
        lines += [
            "",
            f"## {run.name}",
            "",
            f"{title[0].upper()}{title[1:]}; {result['seconds']:g} s each.",
            "",
        ]
        lines += [*_figures(run, result), "", *list_checks(checks)]
    return "\n".join([*lines, ""])


def _goodput(result: Result, number: int) -> float:
    rate: float = result["load"]["phases"][number]["tokens_in_time_per_second"]
    capacity: float = result["capacities"][number]
    return rate / capacity


def _figures(run: Run, result: Result) -> list[str]:
    head = ["offered", "requests/s", "answered 200", "refused 503", "other", "goodput"]
    head += ["admitted p50 / p99 ms", "refused p50 / p99 ms", "generator's lag p99 ms"]
    rows = []
    for number, (factor, phase) in enumerate(zip(run.factors, result["load"]["phases"], strict=True)):
        good, refused = phase["statuses"].get("200", 0), phase["statuses"].get("503", 0)
        rows.append(
            [
                f"{factor:g}x",
                f"{phase['rate']:.0f}",
                str(good),
                str(refused),
                str(phase["offered"] - good - refused),
                f"{_goodput(result, number):.2f}",
                f"{phase['admitted']['p50_ms']:.0f} / {phase['admitted']['p99_ms']:.0f}" if good else "",
                f"{phase['refused']['p50_ms']:.1f} / {phase['refused']['p99_ms']:.1f}" if refused else "",
                f"{phase['lag_p99_ms']:.1f}",
            ]
        )
    return table(head, rows)
