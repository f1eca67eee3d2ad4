"""The four runs of the load test, by wrk or, where there is none, by the project's own load generator."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import texts
from bench.processes import REPOSITORY, ChildError
from bench.systems import load_command
from stress.gateway import PATH

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = REPOSITORY / "scripts" / "wrk-embed.lua"
BUSY = "service is busy"
BODIES = 20_000
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """Threads and connections of wrk, and how long."""

    threads: int
    connections: int
    seconds: int


@dataclass(frozen=True)
class Result:
    """What came of a run; ``failed`` counts refusals and whatever kept a request from its answer."""

    run: Run
    requests: int
    failed: int
    busy: int
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def success(self) -> float:
        """Return the share of requests that were answered 200."""
        return (self.requests - self.failed) / self.requests if self.requests else 0.0


RUNS = (Run(1, 1, 15), Run(1, 4, 20), Run(2, 10, 20), Run(4, 20, 20))


def generator() -> str:
    """Return the name and version of what makes the load."""
    if shutil.which("wrk") is None:
        return "the project's load generator (wrk is not installed)"
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)  # noqa: S607 - wrk of the PATH
    version = re.search(r"wrk (\S+)", said.stdout + said.stderr)
    return f"wrk {version[1] if version else ''}".strip()


def measure(address: str, run: Run, workplace: Path) -> Result:
    """Do one run."""
    figures = _wrk(address, run) if shutil.which("wrk") else _own(address, run, workplace)
    return Result(run, **figures)


def command(run: Run) -> str:
    """Return the command line of a run, as a person would type it."""
    return f"wrk -t{run.threads} -c{run.connections} -d{run.seconds}s -s scripts/wrk-embed.lua http://127.0.0.1:8080"


def _wrk(address: str, run: Run) -> dict[str, Any]:
    words = command(run).split()[:-1]
    words = [str(SCRIPT) if word == "scripts/wrk-embed.lua" else word for word in words]
    line = _output([*words, f"http://{address}"], os.environ | {"AKIDB_WRK_JSON": "1"})
    figures: dict[str, Any] = json.loads(line)
    del figures["seconds"]
    return figures


def _own(address: str, run: Run, workplace: Path) -> dict[str, Any]:
    bodies = workplace / "bodies.jsonl"
    with bodies.open("w") as file:
        for text in texts.generate("short", BODIES):
            body = json.dumps({"texts": [text]})
            file.write(json.dumps({"texts": 1, "tokens": 1, "body": body}) + "\n")
    words = load_command(address, PATH, bodies, connections=run.connections, warm_up=0, seconds=run.seconds)
    report = json.loads(_output(words, os.environ))
    names = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")
    busy = int(BUSY in str(report["first_error"]).lower())
    total = report["requests"] + report["errors"]
    return {name: report[name] for name in names} | {
        "requests": total,
        "failed": report["errors"],
        "busy": busy,
    }


def _output(words: list[str], environment: Any) -> str:  # noqa: ANN401 - the type of os.environ
    """Return the last line that a program wrote."""
    done = subprocess.run(  # noqa: S603 - commands of our own
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or lines or ["nothing was written"])[-1]
        raise ChildError(f"{words[0]}: exit code {done.returncode}: {said}")
    return lines[-1]
