"""The runs of ``make overload``: what each one changes from the defaults, and how it is carried out."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import environments, texts
from bench.processes import REPOSITORY

from stress import load
from stress.gateway import Gateway, histogram_bound

if TYPE_CHECKING:
    from bench.progress import Progress

WORKPLACE = REPOSITORY / "target" / "overload"
FAKE_WORKER = REPOSITORY / "sidecar-py" / "tests" / "fake_worker.py"
FAKE_MODEL = REPOSITORY / "gateway" / "tests" / "data" / "fake_model"
WORKERS = 2
SECONDS_PER_TOKEN = 1 / 3000
"""Of a fake worker."""
STEADY: dict[str, Any] = {
    "delay": 0.001,
    "delay_per_token": SECONDS_PER_TOKEN,
    "warm_up": [100, 100 * SECONDS_PER_TOKEN / 3],
}
"""A batch costs something of its own, and the warm-up looks three times faster than a full batch is."""
SHARED_CORES = {
    **STEADY,
    "delay_per_token": SECONDS_PER_TOKEN / WORKERS,
    "cores": os.cpu_count(),
}
"""As fast when all are busy, but one that computes alone has the cores of the others, too."""
ONE_SLOW = {**STEADY, "workers": {"1": {"delay_per_token": 10 * SECONDS_PER_TOKEN}}}
BODIES = 300
CAPACITY_SECONDS = 4.0
SETTLE_SECONDS = 3.0
SMALL_SHARE = 0.2
"""Of the capacity: so much is offered in small requests."""
REJECTIONS = "akidb_rejection_seconds"
NORMAL_INTERVALS = 4
"""So many intervals of a quarter of a second in a row show that the overload is over."""


@dataclass(frozen=True)
class Run:
    """One run. Phases of even length follow each other, with loads that are multiples of the capacity."""

    name: str
    title: str
    kind: str = "fake"
    flags: tuple[str, ...] = ()
    deadline: float = 1.0
    least_seconds: float = 0.0
    """Of a phase."""
    texts_per_request: int = 1
    control: dict[str, Any] = field(default_factory=lambda: STEADY)
    small_seconds: float = 0.0
    """Small requests come for so long before."""
    slow_control: dict[str, Any] | None = None
    """From the second phase on."""
    factors: tuple[float, ...] = (0.7, 2.0, 5.0, 0.7)
    least_goodput: tuple[tuple[float, float], ...] = ((2.0, 0.95), (5.0, 0.90))
    judges_recovery: bool = True
    """Else what was admitted takes too long, or the machine is not as it was in the first phase."""


RUNS = (
    Run("default", "two fake workers of fixed speed, which take no processor time"),
    Run(
        "small",
        "after a minute of small requests; a worker that computes alone has all cores",
        control=SHARED_CORES,
        small_seconds=60,
    ),
    Run("batch-64", "`--max-batch-tokens 64`", flags=("--max-batch-tokens", "64")),
    Run("batch-256", "`--max-batch-tokens 256`", flags=("--max-batch-tokens", "256")),
    Run("inflight-1", "`--max-inflight-per-worker 1`", flags=("--max-inflight-per-worker", "1")),
    Run("inflight-16", "`--max-inflight-per-worker 16`", flags=("--max-inflight-per-worker", "16")),
    Run("inflight-64", "`--max-inflight-per-worker 64`", flags=("--max-inflight-per-worker", "64")),
    Run("deadline-0.3", "deadline 0.3 s", deadline=0.3),
    Run(
        "deadline-30",
        "deadline 30 s",
        deadline=30,
        least_seconds=30,
        texts_per_request=8,
        judges_recovery=False,
    ),
    Run(
        "slow-worker",
        "one of the two workers becomes ten times slower after the first phase",
        least_seconds=28,
        slow_control=ONE_SLOW,
        factors=(2.0, 2.0, 5.0, 0.7),
        judges_recovery=False,
    ),
    Run(
        "mlx",
        "two MLX workers; the load generator and the gateway share their cores",
        kind="mlx",
        least_goodput=((2.0, 0.90), (5.0, 0.80)),
    ),
)
NAMES = tuple(run.name for run in RUNS)


def measure(run: Run, seconds: float, progress: Progress) -> dict[str, Any]:
    """Run all phases, each for at least this many seconds."""
    seconds = max(seconds, run.least_seconds)
    workplace = WORKPLACE / run.name
    workplace.mkdir(parents=True, exist_ok=True)
    with _gateway(run) as gateway:
        recording = load.record(gateway, _requests(run), workplace / "mixed")
        capacity = load.capacity(gateway, recording, CAPACITY_SECONDS)
        capacities = [capacity] * len(run.factors)
        if run.slow_control is not None:
            _tell(run, run.slow_control)
            load.capacity(gateway, recording, SETTLE_SECONDS)
            slow = load.capacity(gateway, recording, CAPACITY_SECONDS)
            capacities[1:] = [slow] * (len(run.factors) - 1)
            _tell(run, run.control)
            load.capacity(gateway, recording, SETTLE_SECONDS)
        if run.small_seconds:
            progress.say(f"{run.name}: {run.small_seconds:g} s of small requests")
            small = load.record(gateway, [["a b c d"]], workplace / "small")
            phases = [(SMALL_SHARE * capacity, run.small_seconds)]
            with load.open_loop(gateway, small, phases, run.deadline, workplace) as generator:
                generator.receive(run.small_seconds + run.deadline + load.PATIENCE_SECONDS)
        loads = list(zip(run.factors, capacities, strict=True))
        offered = ", ".join(f"{factor:g} x {capacity:.0f}" for factor, capacity in loads)
        progress.say(f"{run.name}: offering {offered} tokens/s for {seconds:g} s each")
        before = gateway.metrics()
        phases = [(factor * capacity, seconds) for factor, capacity in loads]
        with load.open_loop(gateway, recording, phases, run.deadline, workplace) as generator:
            if run.slow_control is not None:
                time.sleep(seconds)
                _tell(run, run.slow_control)
            # The generator waits for the last answers, too.
            report = generator.receive(seconds * len(phases) + run.deadline + load.PATIENCE_SECONDS)
        after = gateway.metrics()
    return {
        "capacities": capacities,
        "mean_tokens": recording.mean_tokens,
        "deadline": run.deadline,
        "seconds": seconds,
        "rejection_p99_seconds": histogram_bound(before, after, REJECTIONS, 99),
        "recovery_seconds": recovery_seconds(report["timeline"], seconds, len(run.factors)),
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


def _gateway(run: Run) -> Gateway:
    flags = ["--request-timeout", f"{round(run.deadline * 1000)}ms", *run.flags]
    environment = {}
    if run.kind == "fake":
        _tell(run, run.control)
        environment["AKIDB_FAKE_CONTROL"] = str(WORKPLACE / run.name / "control.json")
        flags += ["--model", str(FAKE_MODEL), "--python", str(FAKE_WORKER)]
    else:
        flags += ["--model", environments.MODEL]
    return Gateway(f"gateway-{run.name}", flags, WORKERS, environment, WORKPLACE / run.name)


def _tell(run: Run, control: dict[str, Any]) -> None:
    """Tell the fake workers how to behave from their next batch on."""
    following = WORKPLACE / run.name / "next.json"
    following.write_text(json.dumps(control))
    following.replace(WORKPLACE / run.name / "control.json")


def _requests(run: Run) -> list[list[str]]:
    count = BODIES * run.texts_per_request
    if run.kind == "mlx":
        single = texts.generate("natural", count)
    else:
        # The fake model's tokens are letters.
        chance = random.Random(20)  # noqa: S311 - not a secret
        lengths = [min(60, max(4, round(chance.lognormvariate(3.3, 0.45)))) for _ in range(count)]
        single = [" ".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=length)) for length in lengths]
    return [single[start : start + run.texts_per_request] for start in range(0, count, run.texts_per_request)]
