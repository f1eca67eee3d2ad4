"""The other end of :meth:`bench.processes.Child.ask`: questions and answers are lines of JSON.

Also the timing that the in-process systems share. Standard output belongs to the answers; what libraries
print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.figures import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Call = tuple[int, int, Callable[[], object]]
    """How many texts, how many tokens, what to call."""

FEWEST_CALLS = 3
LONGEST_SPAN = 3
"""Slow calls are not repeated beyond this many times the wanted seconds."""


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say that everything is loaded, then answer until end-of-file."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=output, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=output, flush=True)


def timed(calls: Sequence[Call], seconds: float) -> dict[str, Any]:
    """Make the calls over and over for this many seconds."""
    latencies: list[float] = []
    texts = tokens = 0
    started = now = time.perf_counter()
    while now - started < (seconds if len(latencies) >= FEWEST_CALLS else LONGEST_SPAN * seconds):
        call_texts, call_tokens, call = calls[len(latencies) % len(calls)]
        call()
        previous, now = now, time.perf_counter()
        latencies.append((now - previous) * 1000)
        texts += call_texts
        tokens += call_tokens
    spent = now - started
    return {
        "requests": len(latencies),
        "errors": 0,
        "requests_per_second": len(latencies) / spent,
        "texts_per_second": texts / spent,
        "tokens_per_second": tokens / spent,
        "p50_ms": percentile(latencies, 50),
        "p95_ms": percentile(latencies, 95),
        "p99_ms": percentile(latencies, 99),
    }
