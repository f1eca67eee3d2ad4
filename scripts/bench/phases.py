"""Where the time of a request goes, from the gateway's own histograms."""

from __future__ import annotations

import re
from typing import Any

from bench.processes import fetch

PER_REQUEST = ("parse", "tokenize", "queue", "write")
PER_BATCH = ("transfer", "compute")
PHASES = ("http", "parse", "tokenize", "queue", "transfer", "compute", "write")
"""In the order of a request's way; ``http`` is what the others leave of the time that a client sees."""

_SAMPLE = re.compile(
    r"^akidb_embedding_(?:phase_seconds|(?P<wait>gil_wait)_seconds)_(?P<what>sum|count)"
    r'(?:\{phase="(?P<phase>\w+)"\})? (?P<value>\S+)$',
    re.MULTILINE,
)

Sums = dict[tuple[str, str], float]


def read(url: str) -> Sums:
    """Return sum and count of every phase so far."""
    return parse(fetch(f"{url}/metrics"))


def parse(metrics: str) -> Sums:
    """Read the sums and counts out of the text of ``/metrics``."""
    samples = _SAMPLE.finditer(metrics)
    return {
        ("queue" if sample["wait"] else sample["phase"], sample["what"]): float(sample["value"])
        for sample in samples
    }


def between(before: Sums, after: Sums, measured: dict[str, Any], connections: int) -> dict[str, float]:
    """Return the mean time of every phase in milliseconds, and the texts of a mean batch.

    A closed loop of N connections that answers R requests per second takes N / R seconds for each.
    """
    means = {}
    for phase in PER_REQUEST + PER_BATCH:
        count = after[phase, "count"] - before[phase, "count"]
        means[phase] = 1000 * (after[phase, "sum"] - before[phase, "sum"]) / max(count, 1)
    batches = after["compute", "count"] - before["compute", "count"]
    requests = after["queue", "count"] - before["queue", "count"]
    texts = measured["texts_per_second"] / measured["requests_per_second"]
    total = 1000 * connections / measured["requests_per_second"]
    means["http"] = max(0.0, total - sum(means.values()))
    figures = {f"phase_{phase}_ms": means[phase] for phase in PHASES}
    return figures | {"phase_total_ms": total, "phase_batch_texts": texts * requests / max(batches, 1)}
