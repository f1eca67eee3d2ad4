"""``python -m stress.chaos``: kill, stop and hang workers under load; no client may notice."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench import environments, texts
from bench.options import some_of
from bench.processes import REPOSITORY, ChildError, run_command
from bench.progress import Progress

from stress import load
from stress.gateway import READY_PATIENCE_SECONDS, Footprint, Gateway, increase, send
from stress.verdict import Check, list_checks, table

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKPLACE = REPOSITORY / "target" / "chaos"
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "hang": signal.SIGUSR1}
"""A worker that was started with ``AKIDB_CHAOS=1`` stops computing at SIGUSR1; its heartbeats go on."""
BODIES = 300
CAPACITY_SECONDS = 3.0
SHARE_OF_CAPACITY = 0.7
DEADLINE_SECONDS = 30.0
"""The gateway's own default."""
CALM_SECONDS = 1.0
"""How long all workers have been ready before the next fault."""
LEAST_SUCCESS = 0.999
BASELINE_PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.02


@dataclass
class Fault:
    """What was done to a worker; ``ready_seconds`` is how long it took until all were ready again."""

    kind: str
    worker: int
    second: float
    ready_seconds: float | None = None


class Calm:
    """Tells when the next fault is due: when all workers have been ready for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def is_over(self, now: float, *, ready: bool) -> bool:
        """Say so; to be asked again and again."""
        if not ready:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds

    def begin(self) -> None:
        """Start anew, after a fault."""
        self._since = None


class Tormentor:
    """Does something to a random worker whenever all have been ready for a while."""

    def __init__(self, gateway: Gateway, kinds: Sequence[str], seed: int, progress: Progress) -> None:
        self._gateway = gateway
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._kinds = kinds
        self._progress = progress
        self._calm = Calm(CALM_SECONDS)
        self._victim: tuple[float, int] | None = None
        self._seconds = 0.0
        self.faults: list[Fault] = []

    def torment(self, seconds: float) -> None:
        """Do so for a while."""
        started, self._seconds = time.monotonic(), seconds
        while (now := time.monotonic()) - started < seconds:
            workers = self._look(now)
            if self._calm.is_over(now, ready=bool(workers) and self._victim is None):
                self._strike(workers, now, now - started)
            time.sleep(POLL_SECONDS)

    def wait_for_recovery(self) -> None:
        """Wait until the last victim is replaced."""
        deadline = time.monotonic() + READY_PATIENCE_SECONDS
        while self._victim is not None:
            if time.monotonic() > deadline:
                raise ChildError(f"the last worker is not replaced after {READY_PATIENCE_SECONDS:.0f} s")
            self._look(time.monotonic())
            time.sleep(POLL_SECONDS)

    def availability(self) -> float:
        """Return the share of the workers' time in which they could compute: more load than that piles up."""
        lost = sum(min(f.ready_seconds or 0.0, self._seconds - f.second) for f in self.faults)
        return 1 - lost / (self._seconds * self._gateway.workers)

    def _look(self, now: float) -> list[dict[str, Any]]:
        """Return the workers when all are ready, else none."""
        workers = self._gateway.health()
        if not self._gateway.is_ready(workers):
            return []
        self._note_recovery(now, workers)
        return workers

    def _strike(self, workers: list[dict[str, Any]], now: float, second: float) -> None:
        # Every kind in turn, so that a short run has all of them.
        kind = self._kinds[len(self.faults) % len(self._kinds)]
        worker = self._random.choice(workers)
        if send(worker["pid"], FAULTS[kind]):
            self.faults.append(Fault(kind, worker["id"], second))
            self._victim = (now, worker["pid"])
            self._calm.begin()

    def _note_recovery(self, now: float, workers: list[dict[str, Any]]) -> None:
        """Note when another process took the victim's place: a stopped one is called ready for a while."""
        if self._victim is None or self._victim[1] in [worker["pid"] for worker in workers]:
            return
        fault = self.faults[-1]
        fault.ready_seconds = now - self._victim[0]
        self._victim = None
        self._progress.say(
            f"{fault.kind} worker {fault.worker}: ready again after {fault.ready_seconds:.2f} s"
        )


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when a client noticed anything, or something is left over."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags = _parser().parse_args(arguments)
    progress = Progress()
    timeout = f"{round(flags.deadline * 1000)}ms"
    gateway_flags = ["--model", environments.MODEL, "--request-timeout", timeout]
    environment = {"AKIDB_CHAOS": "1"}
    with Gateway("gateway", gateway_flags, flags.workers, environment, WORKPLACE) as gateway:
        progress.say("recording the quiet server's answers")
        recording = load.record(gateway, [[text] for text in texts.generate("natural", BODIES)], WORKPLACE)
        baseline, before = gateway.footprint(), gateway.metrics()
        rate = load.capacity(gateway, recording, CAPACITY_SECONDS)
        offered = flags.load * rate
        progress.say(
            f"{rate:.0f} tokens/s at its best; {offered:.0f} tokens/s for {flags.seconds:g} s, with faults"
        )
        phases = [(offered, flags.seconds)]
        with load.open_loop(gateway, recording, phases, flags.deadline, WORKPLACE) as generator:
            tormentor = Tormentor(gateway, flags.faults, flags.seed, progress)
            tormentor.torment(flags.seconds)
            tormentor.wait_for_recovery()
            report = generator.receive()
        left_over = _left_over(gateway, baseline)
        restarts = increase(before, gateway.metrics(), "akidb_worker_restarts_total")
    phase = report["phases"][0]
    checks = judge(phase, left_over, len(tormentor.faults))
    results = {
        "capacity": rate,
        "faults": [asdict(fault) for fault in tormentor.faults],
        "restarts": restarts,
    }
    results |= {"left_over": left_over, "checks": [vars(check) for check in checks], "load": report}
    results["availability"] = tormentor.availability()
    (WORKPLACE / "results.json").write_text(json.dumps(results, indent=1))
    there = (
        f"workers were there {tormentor.availability():.0%} of the time, {flags.load:.0%} was asked of them"
    )
    lines = [*_figures(phase, report["messages"], restarts), there, "", *_faults(tormentor.faults), ""]
    print("\n".join([*lines, *list_checks(checks)]))  # noqa: T201 - the table
    progress.say("written: target/chaos/results.json")
    return int(not all(check.good for check in checks))


def judge(phase: dict[str, Any], left_over: list[str], faults: int) -> list[Check]:
    """Hold the run to what clients were promised."""
    success, wrong, late = load.success(phase), phase["wrong"], phase["late"]
    return [
        Check("faults", str(faults), ">= 1", faults >= 1),
        Check("answered 200", f"{success:.3%}", f">= {LEAST_SUCCESS:.1%}", success >= LEAST_SUCCESS),
        Check("wrong vectors", f"{wrong} of {phase['compared']}", "0", wrong == 0 and phase["compared"] > 0),
        Check("answered after the deadline", str(late), "0", late == 0),
        Check("left over", "; ".join(left_over) or "nothing", "nothing", not left_over),
    ]


def _left_over(gateway: Gateway, baseline: Footprint) -> list[str]:
    """Wait until nothing is more than before the load; say what still is."""
    deadline = time.monotonic() + BASELINE_PATIENCE_SECONDS
    while (more := gateway.footprint().beyond(baseline)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return more


def _figures(phase: dict[str, Any], messages: dict[str, str], restarts: dict[str, int]) -> list[str]:
    answers = ", ".join(f"{count} with {status}" for status, count in phase["statuses"].items())
    admitted = phase["admitted"]
    times = {name: f"{admitted[f'{name}_ms']:.0f} ms" for name in ("p50", "p99", "max")}
    latency = ", ".join(f"{name} {value}" for name, value in times.items())
    lines = [
        f"{phase['offered']} requests at {phase['rate']:.0f}/s for {phase['seconds']:g} s: {answers}",
        f"latency: {latency}; the generator's lag: p99 {phase['lag_p99_ms']:.0f} ms",
        "restarts: " + (", ".join(f"{count} {reason}" for reason, count in restarts.items()) or "none"),
    ]
    return lines + [
        f"{count} x {code}: {messages.get(code, '')}" for code, count in sorted(phase["codes"].items())
    ]


def _faults(faults: list[Fault]) -> list[str]:
    rows = []
    for kind in FAULTS:
        times = [f.ready_seconds for f in faults if f.kind == kind and f.ready_seconds is not None]
        count = sum(fault.kind == kind for fault in faults)
        shown = [f"{statistics.median(times):.2f}", f"{max(times):.2f}"] if times else ["", ""]
        rows.append([kind, str(count), *shown])
    return table(["fault", "times", "all ready again, median s", "longest s"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos CHAOS_ARGS=...", description=__doc__)
    seconds = float(os.environ.get("CHAOS_SECONDS") or 60)
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="time of the load (default: CHAOS_SECONDS or 60)"
    )
    share = SHARE_OF_CAPACITY
    parser.add_argument(
        "--load", type=float, default=share, help=f"share of the capacity (default: {share:g})"
    )
    what = f"seconds a request may take (default: {DEADLINE_SECONDS:g})"
    parser.add_argument("--deadline", type=float, default=DEADLINE_SECONDS, help=what)
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument(
        "--faults", type=some_of(FAULTS), default=list(FAULTS), help="which, with commas (default: all)"
    )
    parser.add_argument("--seed", type=int, default=1, help="chooses the workers")
    return parser


if __name__ == "__main__":
    run_command(main)
