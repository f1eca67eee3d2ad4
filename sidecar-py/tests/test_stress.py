from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from stress import chaos, load, overload_page, overload_plot, overload_runs
from stress.gateway import Footprint, histogram_bound, increase, parse_metrics
from stress.verdict import table

METRICS = """\
# HELP akidb_worker_restarts Workers started again.
# TYPE akidb_worker_restarts counter
akidb_worker_restarts_total{reason="signal"} 3
akidb_worker_restarts_total{reason="heartbeat"} 1
akidb_rejection_seconds_sum{code="overloaded"} 0.2
akidb_rejection_seconds_bucket{le="0.001",code="overloaded"} 90
akidb_rejection_seconds_bucket{le="0.003",code="overloaded"} 99
akidb_rejection_seconds_bucket{le="+Inf",code="overloaded"} 100
akidb_embedding_queue_depth 0
# EOF
"""


def phase(**changes: Any) -> dict[str, Any]:
    times = {"count": 10, "p50_ms": 5.0, "p95_ms": 8.0, "p99_ms": 9.0, "max_ms": 9.0}
    figures: dict[str, Any] = {
        "rate": 10.0,
        "seconds": 10.0,
        "offered": 1000,
        "statuses": {"200": 1000},
        "codes": {},
        "admitted": times,
        "refused": times,
        "tokens_in_time_per_second": 100.0,
        "late": 0,
        "wrong": 0,
        "compared": 1000,
        "refused_without_retry_after": 0,
        "lag_p99_ms": 1.0,
    }
    return figures | changes


def interval(second: float, p99_ms: float = 50.0, refused: int = 0) -> dict[str, Any]:
    return {"second": second, "offered": 10, "in_time": 10 - refused, "refused": refused, "p99_ms": p99_ms}


def test_counters_are_read_and_compared() -> None:
    after = parse_metrics(METRICS)
    assert after["akidb_embedding_queue_depth"] == 0
    before = {'akidb_worker_restarts_total{reason="heartbeat"}': 1.0}
    assert increase(before, after, "akidb_worker_restarts_total") == {"signal": 3}


def test_a_percentile_of_a_histogram_is_the_edge_of_its_bucket() -> None:
    after = parse_metrics(METRICS)
    bound = [histogram_bound({}, after, "akidb_rejection_seconds", percent) for percent in (50, 99, 100)]
    assert bound == [0.001, 0.003, float("inf")]
    assert histogram_bound(after, after, "akidb_rejection_seconds", 99) is None
    assert histogram_bound({}, {}, "akidb_rejection_seconds", 99) is None


def test_a_histogram_with_a_label_is_added_up() -> None:
    lines = [
        'x_bucket{le="0.1",code="a"} 1',
        'x_bucket{le="+Inf",code="a"} 1',
        'x_bucket{le="0.1",code="b"} 1',
        'x_bucket{le="+Inf",code="b"} 3',
    ]
    after = parse_metrics("\n".join(lines))
    assert histogram_bound({}, after, "x", 51) == float("inf")
    assert histogram_bound({}, after, "x", 49) == 0.1


def test_only_what_grew_is_left_over() -> None:
    baseline = Footprint(descriptors=20, threads=4, children=2, in_flight=0)
    now = Footprint(descriptors=21, threads=3, children=2, in_flight=1)
    assert now.beyond(baseline) == ["descriptors 21, before 20", "in_flight 1, before 0"]
    assert baseline.beyond(baseline) == []


def test_a_fault_is_due_when_all_workers_were_ready_for_a_while() -> None:
    calm = chaos.Calm(1.0)
    assert not calm.is_over(10.0, ready=True)
    assert not calm.is_over(10.9, ready=False)
    assert not calm.is_over(11.5, ready=True)
    assert calm.is_over(12.5, ready=True)
    calm.begin()
    assert not calm.is_over(12.6, ready=True)


@pytest.mark.parametrize(
    ("changes", "left_over", "failed"),
    [
        ({}, [], []),
        ({"statuses": {"200": 999, "503": 1}}, [], []),
        ({"statuses": {"200": 998, "503": 2}}, [], ["answered 200"]),
        ({"statuses": {}}, [], ["answered 200"]),
        ({"wrong": 1}, [], ["wrong vectors"]),
        ({"compared": 0}, [], ["wrong vectors"]),
        ({"late": 1}, [], ["answered after the deadline"]),
        ({}, ["threads 9, before 8"], ["left over"]),
    ],
)
def test_chaos_fails_for_whatever_a_client_notices(
    changes: dict[str, Any], left_over: list[str], failed: list[str]
) -> None:
    checks = chaos.judge(phase(**changes), left_over, faults=3)
    assert [check.what for check in checks if not check.good] == failed


def test_chaos_without_a_fault_proves_nothing() -> None:
    assert not all(check.good for check in chaos.judge(phase(), [], faults=0))


def test_success_counts_what_could_not_be_sent() -> None:
    assert load.success(phase(offered=4, statuses={"200": 3, "0": 1})) == 0.75


def test_recovery_is_the_first_second_that_is_as_before() -> None:
    quiet = [interval(0.25 * i) for i in range(8)]
    busy = [interval(2 + 0.25 * i, 900, 5) for i in range(8)]
    after = [interval(4, 80), interval(4.25), interval(4.5, refused=1)]
    after += [interval(4.75 + 0.25 * i) for i in range(5)]
    assert overload_runs.recovery_seconds(quiet + busy + after, 2.0, 3) == 0.75
    assert overload_runs.recovery_seconds(quiet + busy + after[:5], 2.0, 3) is None


RUNS = {run.name: run for run in overload_runs.RUNS}


def result(run: str = "default", **changes: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "capacities": [100.0] * 4,
        "mean_tokens": 10.0,
        "deadline": 1.0,
        "seconds": 10.0,
        "rejection_p99_seconds": 0.003,
        "recovery_seconds": 0.25,
        "load": {"phases": [phase(rate=10 * factor) for factor in RUNS[run].factors]},
    }
    return figures | changes


@pytest.mark.parametrize(
    ("run", "changes", "failed"),
    [
        ("default", {}, []),
        ("default", {"rejection_p99_seconds": None}, ["p99 of refusals, at the gateway"]),
        ("default", {"rejection_p99_seconds": 0.03}, ["p99 of refusals, at the gateway"]),
        ("default", {"recovery_seconds": None}, ["normal again after the overload"]),
        ("default", {"capacities": [108.0] * 4}, ["goodput at 2x"]),
        ("mlx", {"capacities": [108.0] * 4}, []),
        ("mlx", {"capacities": [113.0] * 4}, ["goodput at 2x"]),
        ("slow-worker", {"capacities": [108.0, 100.0, 100.0, 100.0]}, ["goodput at 2x"]),
        ("slow-worker", {"capacities": [100.0, 108.0, 108.0, 108.0]}, ["goodput at 2x when slower"]),
        ("deadline-30", {"recovery_seconds": None}, []),
    ],
)
def test_overload_is_held_to_its_targets(run: str, changes: dict[str, Any], failed: list[str]) -> None:
    checks = overload_page.judge(RUNS[run], result(run, **changes))
    assert [check.what for check in checks if not check.good] == failed


def test_the_latency_that_is_wanted_follows_the_deadline() -> None:
    fast = replace(RUNS["default"], deadline=0.001)
    failed = [check.what for check in overload_page.judge(fast, result()) if not check.good]
    assert failed == ["p99 of admitted at 2x", "p99 of admitted at 5x"]


def test_runs_last_at_least_four_deadlines_and_at_most_two_minutes() -> None:
    for run in overload_runs.RUNS:
        seconds = max(10, run.least_seconds) * len(run.factors) + run.small_seconds
        assert 4 * run.deadline <= seconds <= 120, run.name


def test_every_setting_that_is_promised_is_changed_by_itself() -> None:
    flags = {run.flags for run in overload_runs.RUNS if run.kind == "fake"}
    sizes = {("--max-batch-tokens", size) for size in ("64", "256")}
    assert flags == sizes | {("--max-inflight-per-worker", number) for number in ("1", "16", "64")} | {()}
    assert {run.deadline for run in overload_runs.RUNS} == {0.3, 1.0, 30.0}
    assert {run.kind for run in overload_runs.RUNS} == {"fake", "mlx"}


def test_the_page_and_the_drawing_have_every_load() -> None:
    results = {"default": result(), "mlx": result(capacities=[90.0] * 4)}
    page = overload_page.write(results, ["--seconds", "5"])
    assert 'make overload OVERLOAD_ARGS="--seconds 5"' in page
    assert [page.count(f"\n| {factor:g}x ") for factor in (0.7, 2, 5)] == [4, 2, 2]
    titles = {run.name: run.title for run in overload_runs.RUNS}
    drawing = ET.fromstring(overload_plot.draw(results, titles))  # noqa: S314 - our own
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0.7x", "2x", "5x", "0.7x after", "deadline", "MLX, refused"} <= set(words)


def test_tables_line_up() -> None:
    assert table(["a", "long"], [["value", "b"]]) == [
        "| a     | long |",
        "|-------|------|",
        "| value | b    |",
    ]
