"""What a load test is held to: the replaced system's figures, the targets, and the pass thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from validate.load import Result


@dataclass(frozen=True)
class Metric:
    """A line of the table; what is ``None`` was never asked for."""

    name: str
    connections: int
    replaced: str
    target: str
    threshold: str
    show: Callable[[Result], str]
    is_on_target: Callable[[Result], bool]
    passes: Callable[[Result], bool] | None
    advice: str


FASTER = "a faster machine or GPU, a smaller model, or fewer tokens a text (docs/MLX-PERFORMANCE-TUNING.md)"
METRICS = (
    Metric(
        "success, 1 connection", 1, "100 % at 182 ms, 5.45 requests/s", "100 %", "100 %",
        lambda r: f"{r.success:.2%} at {r.p50_ms:.1f} ms, {r.requests_per_second:.2f} requests/s",
        lambda r: r.success == 1, lambda r: r.success == 1,
        "look at the log for what failed; raise `--request-timeout`",
    ),
    Metric(
        "error rate, 4 connections", 4, "99.9 %", "< 1 %", "< 5 %",
        lambda r: f"{1 - r.success:.2%}",
        lambda r: r.success > 0.99, lambda r: r.success > 0.95,
        "raise `--request-timeout`",
    ),
    Metric(
        "throughput and p95, 4 connections", 4, "-", "15-20 requests/s, < 250 ms", "-",
        lambda r: f"{r.requests_per_second:.1f} requests/s, {r.p95_ms:.0f} ms",
        lambda r: r.requests_per_second >= 15 and r.p95_ms < 250, None,
        FASTER,
    ),
    Metric(
        "error rate, 10 connections", 10, "99.98 %", "< 5 %", "< 10 %",
        lambda r: f"{1 - r.success:.2%}",
        lambda r: r.success > 0.95, lambda r: r.success > 0.90,
        "raise `--request-timeout`",
    ),
    Metric(
        "throughput, 10 connections", 10, "0", "> 20 requests/s", "> 15",
        lambda r: f"{r.requests_per_second:.1f} requests/s",
        lambda r: r.requests_per_second > 20, lambda r: r.requests_per_second > 15,
        f"one worker per core on a CPU (`--workers`), then {FASTER}",
    ),
    Metric(
        "p95, 10 connections", 10, "-", "< 300 ms", "< 500 ms",
        lambda r: f"{r.p95_ms:.0f} ms",
        lambda r: r.p95_ms < 300, lambda r: r.p95_ms < 500,
        f"smaller batches (`--max-batch-tokens`), then {FASTER}",
    ),
    Metric(
        "success, throughput, p95 at 20 connections", 20, "-", "> 95 %, 25-35 requests/s, < 500 ms", "-",
        lambda r: f"{r.success:.2%}, {r.requests_per_second:.1f} requests/s, {r.p95_ms:.0f} ms",
        lambda r: r.success > 0.95 and r.requests_per_second >= 25 and r.p95_ms < 500, None,
        FASTER,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """A metric with what was measured."""

    metric: Metric
    measured: str
    is_on_target: bool
    passes: bool


def judge(results: Sequence[Result]) -> list[Judgement]:
    """Hold the four runs to all metrics."""
    by_connections = {result.run.connections: result for result in results}

    def one(metric: Metric) -> Judgement:
        result = by_connections[metric.connections]
        passes = metric.passes is None or metric.passes(result)
        return Judgement(metric, metric.show(result), metric.is_on_target(result), passes)

    return [one(metric) for metric in METRICS]
