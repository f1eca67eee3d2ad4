"""``make validate``: load tests with thresholds, faults, integration tests, and the report about them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import environments
from bench.processes import REPOSITORY, ChildError, environment_for_children, run_command
from bench.progress import Progress
from stress import chaos
from stress.gateway import Gateway

from validate import load, report
from validate.thresholds import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKPLACE = REPOSITORY / "target" / "validate"
REPORT = REPOSITORY / "docs" / "VALIDATION-REPORT.md"
TESTS = (
    "test_concurrent_embedding_requests",
    "test_gil_semaphore_queuing",
    "test_embedding_error_handling",
    "test_model_info",
)
QUICK_SECONDS, CHAOS_SECONDS, QUICK_CHAOS_SECONDS = 5, 30, 10
TEST_LIMIT_SECONDS = 900
WORKERS = {environments.MODEL: 2, report.QWEN3: 1}
"""On two cores; one worker of Qwen3 uses both, and takes half of the memory of two."""


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when all-minilm-l6-v2 misses a pass threshold, or something else fails."""
    parser = argparse.ArgumentParser(prog="python -m validate", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="runs of 5 s, without Qwen3; writes target/validate alone"
    )
    quick = parser.parse_args(arguments).quick
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    loads = {environments.MODEL: under_load(environments.MODEL, environments.MODEL, progress, quick=quick)}
    if not quick:
        from qwen3 import checkpoint  # noqa: PLC0415 - it loads MLX, which a quick run does not need

        model = str(checkpoint.make_once(progress))
        loads[report.QWEN3] = under_load(report.QWEN3, model, progress, quick=quick)
    progress.say("faults under load")
    seconds = QUICK_CHAOS_SECONDS if quick else CHAOS_SECONDS
    unharmed = chaos.main(["--seconds", str(seconds)]) == 0
    faults = report.Faults(unharmed, seconds, json.loads((chaos.WORKPLACE / "results.json").read_text()))
    tests = {name: passes(name, progress) for name in TESTS}
    validation = report.Validation(loads, WORKERS, faults, tests)
    text = report.write(validation, generator=load.generator(), quick=quick)
    path = WORKPLACE / "report.md" if quick else REPORT
    path.write_text(text)
    print(text)  # noqa: T201 - the report
    progress.say(f"written: {path.relative_to(REPOSITORY)}")
    return int(not validation.is_ready)


def under_load(name: str, model: str, progress: Progress, *, quick: bool) -> report.Load:
    """Put a gateway under the four loads."""
    flags = ["--model", model, "--served-model-name", name]
    title = f"gateway-{name}"
    with Gateway(title, flags, WORKERS[name], {}, WORKPLACE) as gateway:
        results = []
        for run in load.RUNS:
            wanted = replace(run, seconds=QUICK_SECONDS) if quick else run
            progress.say(f"{name}: {wanted.connections} connections for {wanted.seconds} s")
            results.append(load.measure(gateway.address, wanted, WORKPLACE))
        workers = gateway.health()
    log = (WORKPLACE / "logs" / f"{title}.log").read_text(errors="replace").lower()
    busy = log.count(load.BUSY) + sum(result.busy for result in results)
    return report.Load(results, judge(results), busy, workers)


def passes(name: str, progress: Progress) -> bool:
    """Run one of the integration tests."""
    progress.say(f"{name}")
    command = ["cargo", "test", "--locked", "--quiet", "--package", "akidb-gateway"]
    command += ["--test", "embedding_integration_test", "--", "--exact", name]
    done = subprocess.run(  # noqa: S603 - a command of our own
        command,
        cwd=REPOSITORY,
        env=environment_for_children(),
        capture_output=True,
        text=True,
        timeout=TEST_LIMIT_SECONDS,
        check=False,
    )
    if "1 passed" in done.stdout and not done.returncode:
        return True
    if "running 1 test" not in done.stdout:
        raise ChildError(f"{name} was not run: {(done.stderr or done.stdout).strip()[-300:]}")
    sys.stderr.write(done.stdout)
    return False


if __name__ == "__main__":
    run_command(main)
