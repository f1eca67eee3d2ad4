"""A gateway on a free port of the loopback interface, and what it says about itself."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.error
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from bench.processes import Child, ChildError, fetch, free_port, tree
from bench.systems import GATEWAY

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PATH = "/api/v1/embed"
READY_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Footprint:
    """What must not grow: open descriptors, threads and children of the gateway, and batches at workers."""

    descriptors: int
    threads: int
    children: int
    in_flight: int

    def beyond(self, baseline: Footprint) -> list[str]:
        """Say what is more than it was."""
        before, now = vars(baseline), vars(self)
        return [f"{name} {now[name]}, before {before[name]}" for name in now if now[name] > before[name]]


class Gateway:
    """The built gateway with its workers. Entering the ``with`` block waits until all of them are ready."""

    def __init__(
        self, name: str, flags: list[str], workers: int, environment: dict[str, str], workplace: Path
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.workers = workers
        command = [str(GATEWAY), *flags, "--workers", str(workers), "--listen", self.address]
        self._child = Child(name, command, environment, workplace=workplace)

    def __enter__(self) -> Gateway:
        self._child.__enter__()
        try:
            self._child.wait_for_answer(f"http://{self.address}/readyz", body=None)
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A worker that was stopped does not see that the gateway is gone.
        for pid in tree(self._child.pid)[1:]:
            send(pid, signal.SIGCONT)
        self._child.__exit__(kind, error, trace)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the gateway alone."""
        send(self._child.pid, number)

    @property
    def pid(self) -> int:
        """The gateway; its workers descend from it."""
        return self._child.pid

    @property
    def url(self) -> str:
        """Where embeddings are."""
        return f"http://{self.address}{PATH}"

    def health(self) -> list[dict[str, Any]]:
        """Return what ``/health`` says of every worker; nothing when none is ready."""
        try:
            health = fetch(f"http://{self.address}/health", timeout_seconds=10)
        except urllib.error.HTTPError:
            return []
        workers: list[dict[str, Any]] = health["workers"]
        return workers

    def is_ready(self, workers: list[dict[str, Any]]) -> bool:
        """Whether every worker is."""
        return len(workers) == self.workers and all(worker["state"] == "ready" for worker in workers)

    def wait_until_ready(self) -> None:
        """Wait until every worker is."""
        deadline = time.monotonic() + READY_PATIENCE_SECONDS
        while not self.is_ready(self.health()):
            if time.monotonic() > deadline:
                raise ChildError(f"not all workers are ready after {READY_PATIENCE_SECONDS:.0f} s")
            time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """Return every sample of ``/metrics``, by its name with labels."""
        return parse_metrics(str(fetch(f"http://{self.address}/metrics", timeout_seconds=10)))

    def footprint(self) -> Footprint:
        """Count what must not grow."""
        process = psutil.Process(self._child.pid)
        return Footprint(
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            children=len(tree(self._child.pid)) - 1,
            in_flight=sum(worker["in_flight"] for worker in self.health()),
        )


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; say whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def parse_metrics(text: str) -> dict[str, float]:
    """Read the OpenMetrics text form."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def increase(before: dict[str, float], after: dict[str, float], family: str) -> dict[str, int]:
    """Return by how much each sample of a counter has grown, by the value of its only label."""
    grown = {}
    for name, value in after.items():
        label = re.fullmatch(rf'{family}\{{\w+="(.*)"\}}', name)
        more = value - before.get(name, 0.0)
        if label and more:
            grown[label[1]] = round(more)
    return grown


def histogram_bound(
    before: dict[str, float], after: dict[str, float], family: str, percent: float
) -> float | None:
    """Return the upper edge of the bucket of a percentile, over all labels; ``None`` of nothing."""
    counts: dict[float, float] = {}
    for name, value in after.items():
        edge = re.fullmatch(rf'{family}_bucket\{{.*?le="(.*?)".*\}}', name)
        if edge:
            upper = float(edge[1].replace("+Inf", "inf"))
            counts[upper] = counts.get(upper, 0.0) + value - before.get(name, 0.0)
    buckets = sorted(counts.items())
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = buckets[-1][1] * percent / 100
    return next(edge for edge, count in buckets if count >= wanted)
