"""The validation report, as Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bench import environments
from bench.processes import REPOSITORY
from bench.report import processor
from stress.verdict import Check, list_checks, table

from validate import load

if TYPE_CHECKING:
    from validate.load import Result
    from validate.thresholds import Judgement

QWEN3 = "qwen3-embedding-0.6b-random-weights"
NAMES = {
    environments.MODEL: "`all-minilm-l6-v2`, real weights: it decides",
    QWEN3: "Qwen3-Embedding-0.6B: its true geometry with random weights (4 bits), for speed alone",
}
NEXT_TO_QWEN3 = (
    "Qwen3-Embedding-0.6B computes about forty times as much for a token, and the targets were set for Apple "
    "silicon with a GPU. What it misses here says what this CPU can do; it does not decide. wrk counts "
    "an answer that takes more than 2 s as failed, though it comes."
)


@dataclass(frozen=True)
class Load:
    """What came of the four runs with one model."""

    results: list[Result]
    judgements: list[Judgement]
    busy: int
    workers: list[dict[str, Any]]


@dataclass(frozen=True)
class Faults:
    """What came of kills, stops and hangs under load: the results of ``make chaos``."""

    unharmed: bool
    seconds: int
    results: dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """Everything that was found out."""

    loads: dict[str, Load]
    workers: dict[str, int]
    faults: Faults
    tests: dict[str, bool]

    @property
    def missed(self) -> list[Judgement]:
        """Return the pass thresholds that the deciding model misses."""
        return [judged for judged in self._deciding.judgements if not judged.passes]

    @property
    def semaphore_works(self) -> bool:
        """Whether requests wait for a permit instead of being refused as busy."""
        return self.tests["test_gil_semaphore_queuing"] and self._deciding.busy == 0

    @property
    def is_concurrent(self) -> bool:
        """Whether requests at the same time are answered, each with its own vector."""
        return (
            self.tests["test_concurrent_embedding_requests"] and not self.missed and self._deciding.busy == 0
        )

    @property
    def is_ready(self) -> bool:
        """Whether all of it passes."""
        return (
            self.semaphore_works and self.is_concurrent and self.faults.unharmed and all(self.tests.values())
        )

    @property
    def _deciding(self) -> Load:
        return self.loads[environments.MODEL]


def write(validation: Validation, *, generator: str, quick: bool) -> str:
    """Return the report."""
    command = "make validate VALIDATE_ARGS=--quick" if quick else "make validate"
    lines = ["# Validation report", "", f"Written by `{command}`.", ""]
    lines += table(["what", "which"], [[name, value] for name, value in _surroundings(generator).items()])
    lines += ["", "## Load test results", ""]
    for name, loaded in validation.loads.items():
        lines += [f"### {NAMES[name]}", "", *_load(loaded, validation.workers[name]), ""]
    if QWEN3 in validation.loads:
        lines += [NEXT_TO_QWEN3, ""]
    lines += ["### Faults under load", "", *_faults(validation.faults), ""]
    lines += ["## Integration test results", ""]
    results = [[f"`{name}`", "PASS" if passed else "FAIL"] for name, passed in validation.tests.items()]
    lines += [*table(["test", "result"], results), "", "## Overall assessment", ""]
    verdicts = {
        "semaphore": "WORKING" if validation.semaphore_works else "NEEDS_FIX",
        "concurrency": "PASS" if validation.is_concurrent else "FAIL",
        "production readiness": "READY" if validation.is_ready else "NOT_READY",
    }
    lines += table(["what", "verdict"], [[what, verdict] for what, verdict in verdicts.items()])
    lines += ["", "## Recommendations", "", *[f"* {advice}" for advice in _advice(validation)]]
    return "\n".join(lines) + "\n"


def _surroundings(generator: str) -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - git of the PATH
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {cores} cores, {platform.system()} {platform.machine()}",
        "gateway": f"commit {commit or 'unknown'}",
        "Python, MLX": f"{platform.python_version()}, {version('mlx')}",
        "load generator": f"{generator}, on the same machine",
    }


def _load(loaded: Load, workers: int) -> list[str]:
    head = ["command", "requests", "success", "requests/s", "p50", "p95", "p99"]
    rows = [
        [
            f"`{load.command(result.run).split(' -s ')[0]}`",
            str(result.requests),
            f"{result.success:.2%}",
            f"{result.requests_per_second:.1f}",
            *(f"{time:.1f} ms" for time in (result.p50_ms, result.p95_ms, result.p99_ms)),
        ]
        for result in loaded.results
    ]
    seen = loaded.workers[0] if loaded.workers else {}
    device = f"{seen.get('device')}, {seen.get('dtype')}, {seen.get('blas')}"
    held = [
        [
            judged.metric.name,
            judged.metric.replaced,
            judged.metric.target,
            judged.metric.threshold,
            judged.measured,
            "reached" if judged.is_on_target else "missed",
            "-" if judged.metric.passes is None else "PASS" if judged.passes else "FAIL",
        ]
        for judged in loaded.judgements
    ]
    busy = ['"Service is busy" answers or log lines', "all", "0", "0", str(loaded.busy)]
    held.append([*busy, "missed" if loaded.busy else "reached", "FAIL" if loaded.busy else "PASS"])
    columns = ["metric", "replaced system", "target", "pass threshold", "measured", "target", "threshold"]
    return [
        f"`--workers {workers}`, computing on: {device}.",
        "",
        *table(head, rows),
        "",
        *table(columns, held),
    ]


def _faults(faults: Faults) -> list[str]:
    kinds: dict[str, int] = {}
    for fault in faults.results["faults"]:
        kinds[fault["kind"]] = kinds.get(fault["kind"], 0) + 1
    done = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    checks = [Check(**check) for check in faults.results["checks"]]
    return [f"`CHAOS_SECONDS={faults.seconds} make chaos`, two workers: {done}.", "", *list_checks(checks)]


def _advice(validation: Validation) -> list[str]:
    advice = []
    for name, loaded in validation.loads.items():
        missed = [judged for judged in loaded.judgements if not (judged.passes and judged.is_on_target)]
        advice += [
            f"{name}: {judged.metric.name} ({judged.measured}): {judged.metric.advice}." for judged in missed
        ]
    if not validation.semaphore_works:
        advice.append(
            "Requests are refused as busy, or do not wait for a permit: no setting does that; report a bug."
        )
    if not validation.faults.unharmed:
        advice.append("Clients notice faults: see target/chaos/results.json.")
    advice += [
        f"`{name}` fails: see its output above." for name, passed in validation.tests.items() if not passed
    ]
    return advice or ["Every target is reached on this machine: no setting has to be changed."]
