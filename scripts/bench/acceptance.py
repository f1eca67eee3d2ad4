"""What ``make bench`` holds us to. Each ratio is computed within a round; the median of the rounds counts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figures import FLOP_PER_TOKEN
from bench.measure import ENGINE_SETUPS, LARGE, PEER_BATCHES, TEXTS_AT_A_TIME, Point, Round

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEGABYTE = 1e6


@dataclass(frozen=True)
class Target:
    """One line of the list: ``value`` is measured, ``limit`` is what it shall reach or keep to."""

    number: int
    what: str
    unit: str
    at_most: bool
    limit: float | None
    value: float | None

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached`` or ``not measured``."""
        if self.value is None or self.limit is None:
            return "not measured"
        reached = self.value <= self.limit if self.at_most else self.value >= self.limit
        return "reached" if reached else "not reached"


class View:
    """A round, asked for single figures. What was not measured raises ``KeyError``."""

    def __init__(self, measured: Round, tokenizer_bytes: int) -> None:
        self._round = measured
        self.tokenizer_bytes = tokenizer_bytes

    def rate(self, system: str, connections: int = 0, shape: str = "natural", per_request: int = 1) -> float:
        """Tokens per second."""
        point = self._round.points[Point(system, shape, per_request, connections)]
        tokens: float = point["tokens_per_second"]
        return tokens

    def requests(self, system: str, connections: int) -> float:
        """Return requests per second of one natural text each."""
        point = self._round.points[Point(system, "natural", 1, connections)]
        requests: float = point["requests_per_second"]
        return requests

    def p50(self, system: str, connections: int = 0, shape: str = "natural") -> float:
        """Milliseconds."""
        milliseconds: float = self._round.points[Point(system, shape, 1, connections)]["p50_ms"]
        return milliseconds

    def engine_p50(self, shape: str) -> float:
        """Milliseconds that the engine alone takes for one text, with as many threads as suit it."""
        return min(self.p50(f"engine-{setup}", shape=shape) for setup in ("1-thread", "2-threads"))

    def fact(self, system: str, name: str) -> float:
        """Something about a system as a whole."""
        return self._round.systems[system][name]

    def share(self, tokens_per_second: float, threads: int = 2) -> float:
        """Share of the matmul peak of this many cores."""
        return tokens_per_second * FLOP_PER_TOKEN / self._round.peak[threads]

    def engine(self, setup: str, shape: str) -> float:
        """Tokens per second of the engine alone in large batches."""
        return self.rate(setup, shape=shape, per_request=LARGE[shape])

    def best_engine(self, shape: str) -> float:
        """Tokens per second of the engine alone on two cores, in whichever way is faster."""
        return max(self.engine(setup, shape) for setup in ("engine-2-threads", "engine-2-processes"))

    def torch_one_at_a_time(self) -> float:
        """Tokens per second of sentence-transformers."""
        tokens: float = self._round.points[Point("torch", "natural", 1, batch=1)]["tokens_per_second"]
        return tokens

    def torch_best(self) -> float:
        """Tokens per second of sentence-transformers at its best batch size."""
        points = [Point("torch", "natural", TEXTS_AT_A_TIME, batch=batch) for batch in PEER_BATCHES]
        return self._best(points)

    def _best(self, points: list[Point]) -> float:
        measured = [self._round.points[point] for point in points if point in self._round.points]
        best: float = max(point["tokens_per_second"] for point in measured)
        return best

    def best_infinity(self) -> float:
        """Tokens per second of infinity's better engine at 20 connections."""
        names = ("infinity-torch", "infinity-onnx")
        points = [Point(name, "natural", 1, 20) for name in names]
        return self._best(points)


@dataclass(frozen=True)
class Rule:
    """How a target is computed from one round. A limit that is measured, too, is a function."""

    number: int
    what: str
    unit: str
    limit: float | Callable[[View], float]
    value: Callable[[View], float]
    at_most: bool = False

    def judge(self, views: Sequence[View]) -> Target:
        """Return the medians over the rounds."""
        limit = _median(views, self.limit) if callable(self.limit) else self.limit
        return Target(self.number, self.what, self.unit, self.at_most, limit, _median(views, self.value))


def targets(rounds: Sequence[Round], tokenizer_bytes: int) -> list[Target]:
    """Return every line."""
    views = [View(measured, tokenizer_bytes) for measured in rounds]
    lines = [
        _engine_share(setup, shape, limit).judge(views)
        for setup in ENGINE_SETUPS
        for shape, limit in (("natural", 0.60), ("long", 0.45))
    ]
    lines.append(GATEWAY_TO_ENGINE.judge(views))
    for connections in (20, 64):
        lines += _throughput(views, connections)
    return [*lines, *(rule.judge(views) for rule in OTHERS)]


def _engine_share(setup: str, shape: str, limit: float) -> Rule:
    processes, threads = ENGINE_SETUPS[setup]
    return Rule(
        1,
        f"{setup}, {shape} texts, large batches: share of the matmul peak of its cores",
        "",
        limit,
        lambda view: view.share(view.engine(setup, shape), processes * threads),
    )


def _throughput(views: Sequence[View], connections: int) -> list[Target]:
    """Return the lines about more connections; the first is reached by either of two ways."""

    def rate(view: View) -> float:
        return view.rate("akidb", connections)

    faster = Rule(
        3,
        f"{connections} connections / 1 connection (or >= 0.65 of matmul peak)",
        "x",
        1.3,
        lambda view: rate(view) / view.rate("akidb", 1),
    ).judge(views)
    near_peak = Rule(
        3,
        f"{connections} connections: share of matmul peak (or >= 1.3 x 1 connection)",
        "",
        0.65,
        lambda view: view.share(rate(view)),
    ).judge(views)
    one_at_a_time = Rule(
        3,
        f"{connections} connections / torch in process, one text at a time",
        "x",
        2.0,
        lambda view: rate(view) / view.torch_one_at_a_time(),
    )
    best_batch = Rule(
        3,
        f"{connections} connections / torch in process, best batch size",
        "x",
        1.3,
        lambda view: rate(view) / view.torch_best(),
    )
    first = near_peak if faster.verdict != "reached" and near_peak.verdict == "reached" else faster
    return [first, one_at_a_time.judge(views), best_batch.judge(views)]


GATEWAY_TO_ENGINE = Rule(
    2,
    "gateway at 20 connections / engine alone on two cores, tokens/s",
    "",
    0.93,
    lambda view: view.rate("akidb", 20) / view.best_engine("natural"),
)
OTHERS = (
    Rule(
        3,
        "20 connections / mosec with sentence-transformers",
        "x",
        3.0,
        lambda view: view.rate("akidb", 20) / view.rate("mosec", 20),
    ),
    Rule(
        3,
        "20 connections / infinity's best engine",
        "x",
        1.6,
        lambda view: view.rate("akidb", 20) / view.best_infinity(),
    ),
    Rule(
        4,
        "one connection, one short text: p50, against 1.15 x the engine's own + 0.5 ms",
        "ms",
        lambda view: 1.15 * view.engine_p50("short") + 0.5,
        lambda view: view.p50("akidb", 1, "short"),
        at_most=True,
    ),
    Rule(
        5,
        "echo, 20 connections: requests/s / mosec's stock JSON worker",
        "x",
        2.0,
        lambda view: view.requests("echo-akidb", 20) / view.requests("echo-mosec-json", 20),
    ),
    Rule(
        5,
        "echo, 20 connections: requests/s / mosec with ready-made bytes",
        "x",
        1.0,
        lambda view: view.requests("echo-akidb", 20) / view.requests("echo-mosec-bytes", 20),
    ),
    Rule(
        5,
        "echo: memory of the process tree, against mosec's with stock JSON",
        "MB",
        lambda view: view.fact("echo-mosec-json", "memory_bytes") / MEGABYTE,
        lambda view: view.fact("echo-akidb", "memory_bytes") / MEGABYTE,
        at_most=True,
    ),
    Rule(
        5,
        "echo, one connection: p50 above that of a bare hyper server",
        "ms",
        0.3,
        lambda view: view.p50("echo-akidb", 1) - view.p50("hello", 1),
        at_most=True,
    ),
    Rule(
        6,
        "memory of the gateway, against 40 MB + the tokenizer",
        "MB",
        lambda view: 40 + view.tokenizer_bytes / MEGABYTE,
        lambda view: view.fact("akidb", "first_process_bytes") / MEGABYTE,
        at_most=True,
    ),
    Rule(
        6,
        "memory of a worker",
        "MB",
        260,
        lambda view: view.fact("akidb", "largest_other_bytes") / MEGABYTE,
        at_most=True,
    ),
    Rule(
        6, "first answer after exec", "s", 1.5, lambda view: view.fact("akidb", "ready_seconds"), at_most=True
    ),
    Rule(
        6,
        "killed worker ready again",
        "s",
        1.2,
        lambda view: view.fact("akidb", "restart_seconds"),
        at_most=True,
    ),
)


def _median(views: Sequence[View], figure: Callable[[View], float]) -> float | None:
    """Return the median over the rounds that have the figure."""
    values = []
    for view in views:
        try:
            values.append(figure(view))
        except (KeyError, ValueError, ZeroDivisionError):
            continue
    return statistics.median(values) if values else None
