"""Arithmetic on measurements."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FLOP_PER_TOKEN = 21.2e6
"""Of the linear layers of all-minilm-l6-v2; attention comes on top and grows with the length of a text."""


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the smallest value that at least ``percent`` per cent of the values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[rank - 1]


def medians(measurements: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median of every figure that all the measurements have; errors are added up."""
    names = [name for name, value in measurements[0].items() if isinstance(value, int | float)]
    shared = [name for name in names if all(name in measurement for measurement in measurements)]
    result = {name: statistics.median(measurement[name] for measurement in measurements) for name in shared}
    if "errors" in result:
        result["errors"] = sum(measurement["errors"] for measurement in measurements)
    return result
