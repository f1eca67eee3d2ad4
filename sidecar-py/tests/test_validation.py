"""What ``make validate`` and ``make failover`` make of what they measure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench import environments
from services import failover
from validate import __main__ as validate
from validate import load, report
from validate.thresholds import METRICS, judge

GOOD = [load.Result(run, 10_000, 0, 0, 100.0, 10.0, 20.0, 30.0) for run in load.RUNS]


def with_connections(connections: int, **changes: Any) -> list[load.Result]:
    """Return good results, one of which is changed."""
    return [replace(r, **changes) if r.run.connections == connections else r for r in GOOD]


def missed(results: list[load.Result]) -> list[str]:
    return [judged.metric.name for judged in judge(results) if not judged.passes]


def off_target(results: list[load.Result]) -> list[str]:
    return [judged.metric.name for judged in judge(results) if not judged.is_on_target]


def test_good_results_reach_everything() -> None:
    assert missed(GOOD) == off_target(GOOD) == []


@pytest.mark.parametrize(
    ("connections", "changes", "threshold", "target"),
    [
        (1, {"failed": 1}, 1, 1),
        (4, {"failed": 150}, 0, 1),
        (4, {"failed": 500}, 1, 1),
        (4, {"requests_per_second": 14.9}, 0, 1),
        (4, {"p95_ms": 250.0}, 0, 1),
        (10, {"failed": 600}, 0, 1),
        (10, {"failed": 1000}, 1, 1),
        (10, {"requests_per_second": 18.0}, 0, 1),
        (10, {"requests_per_second": 15.0}, 1, 1),
        (10, {"p95_ms": 400.0}, 0, 1),
        (10, {"p95_ms": 500.0}, 1, 1),
        (20, {"failed": 500}, 0, 1),
        (20, {"requests_per_second": 24.0}, 0, 1),
    ],
)
def test_what_is_worse_misses_its_line_and_no_other(
    connections: int, changes: dict[str, Any], threshold: int, target: int
) -> None:
    results = with_connections(connections, **changes)
    assert (len(missed(results)), len(off_target(results))) == (threshold, target)


def test_no_requests_are_no_success() -> None:
    assert missed([replace(result, requests=0) for result in GOOD]) == [
        METRICS[index].name for index in (0, 1, 3)
    ]


def validation(**changes: Any) -> report.Validation:
    """Return a validation in which all is well, but for some changes."""
    model = environments.MODEL
    loaded = report.Load(GOOD, judge(GOOD), 0, [{"device": "cpu", "dtype": "float32", "blas": "none"}])
    checks = [{"what": "faults", "measured": "3", "wanted": ">= 1", "good": True}]
    faults = report.Faults(True, 10, {"faults": [{"kind": "kill"}] * 3, "checks": checks})
    good = report.Validation({model: loaded}, {model: 2}, faults, dict.fromkeys(validate.TESTS, True))
    return replace(good, **changes)


def test_the_report_has_the_form_that_was_asked_for() -> None:
    text = report.write(validation(), generator="wrk 4.1", quick=False)
    titles = ("# Validation report", "## Load test results", "## Integration test results")
    for part in (
        *titles,
        "## Overall assessment",
        "## Recommendations",
        "WORKING",
        "READY",
        "99.98 %",
        "3 x kill",
    ):
        assert part in text
    assert "NOT_READY" not in text
    assert "NEEDS_FIX" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tests": {**dict.fromkeys(validate.TESTS, True), "test_gil_semaphore_queuing": False}},
            "NEEDS_FIX",
        ),
        ({"tests": {**dict.fromkeys(validate.TESTS, True), "test_model_info": False}}, "FAIL"),
        ({"faults": report.Faults(False, 10, {"faults": [], "checks": []})}, "Clients notice faults"),
    ],
)
def test_whatever_fails_is_said_and_not_ready(changes: dict[str, Any], said: str) -> None:
    bad = validation(**changes)
    text = report.write(bad, generator="wrk 4.1", quick=True)
    assert not bad.is_ready
    assert "NOT_READY" in text
    assert said in text


def test_a_missed_threshold_of_the_deciding_model_is_not_ready_and_names_a_setting() -> None:
    results = with_connections(10, requests_per_second=9.0)
    bad = validation(loads={environments.MODEL: report.Load(results, judge(results), 0, [])})
    assert not bad.is_ready
    assert "--workers" in report.write(bad, generator="wrk 4.1", quick=True)
    busy = validation(loads={environments.MODEL: report.Load(GOOD, judge(GOOD), 1, [])})
    assert not busy.is_ready


def test_a_failover_that_a_client_notices_is_named() -> None:
    good = {"offered": 10, "statuses": {"200": 10}, "wrong": 0, "compared": 10}
    assert failover.judge("killed", good) == []
    lost = {**good, "statuses": {"200": 9, "502": 1}, "compared": 9}
    assert failover.judge("killed", lost) == ["killed: 1 of 10 requests failed: 9 x 200, 1 x 502"]
    assert "wrong" in failover.judge("killed", {**good, "wrong": 1})[0]
    assert failover.judge("killed", {**good, "offered": 0, "statuses": {}, "compared": 0})
