"""Goodput and latency against the offered load, as an SVG in the style of the one of ``make bench``."""

from __future__ import annotations

import math
import re
from html import escape
from typing import TYPE_CHECKING, Any

from bench.plot import STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 1000, 400
TOP, BOTTOM = 70, 60
PANEL_WIDTH = 300
GOODPUT_LEFT, LATENCY_LEFT = 56, 500
MOST_GOODPUT = 1.25
LEAST_MS, MOST_MS = 0.1, 10_000.0
TITLE = "What is answered when more is offered than can be computed"
FAKE, MLX = ("a", "fake workers"), ("b", "MLX")
COLOURS = {"default": FAKE, "mlx": MLX}


def draw(results: dict[str, dict[str, Any]], about: dict[str, str]) -> str:
    """Return the SVG; loads stand at even distances."""
    first = next(iter(results.values()))
    offered = [f"{_factor(phase, first):g}x" for phase in first["load"]["phases"]]
    offered[-1] += " after"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    kinds = [
        f"{re.split('[,;]', about[name])[0]} ({r['capacities'][0]:.0f} tokens/s)"
        for name, r in results.items()
    ]
    subtitle = f"deadline {first['deadline']:g} s; {', '.join(kinds)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}  .dashed {{ stroke-dasharray: 3 5; }}</style>",
        f'<text class="title" x="{GOODPUT_LEFT}" y="24">{TITLE}</text>',
        f'<text class="quiet" x="{GOODPUT_LEFT}" y="44">{escape(subtitle)}</text>',
    ]
    shares = {f"{share:g}": _goodput_y(share) for share in (0, 0.25, 0.5, 0.75, 1.0)}
    times = {f"{10**power:g}": _latency_y(10**power) for power in range(-1, 5)}
    parts += _panel(GOODPUT_LEFT, "goodput / capacity", shares, offered)
    parts += _panel(LATENCY_LEFT, "p99 in ms", times, offered)
    ideal = [min(1.0, _factor(phase, first)) for phase in first["load"]["phases"]]
    parts += [_line(GOODPUT_LEFT, [_goodput_y(value) for value in ideal], "peak", dots=False)]
    deadline = _latency_y(first["deadline"] * 1000)
    edge = LATENCY_LEFT + PANEL_WIDTH
    parts.append(
        f'<line class="peak" x1="{LATENCY_LEFT}" x2="{edge}" y1="{deadline:.1f}" y2="{deadline:.1f}"/>'
    )
    goodput_labels, latency_labels = (
        [(_goodput_y(ideal[-1]), "all in time", "quiet")],
        [(deadline, "deadline", "quiet")],
    )
    for name, result in results.items():
        css, label = COLOURS[name]
        phases = result["load"]["phases"]
        goodput = [
            _goodput_y(phase["tokens_in_time_per_second"] / result["capacities"][0]) for phase in phases
        ]
        parts.append(_line(GOODPUT_LEFT, goodput, css))
        goodput_labels.append((goodput[-1], label, css))
        for kind, style in (("admitted", css), ("refused", f"{css} dashed")):
            heights = [
                _latency_y(phase[kind]["p99_ms"]) if phase[kind]["count"] else None for phase in phases
            ]
            parts.append(_line(LATENCY_LEFT, heights, style))
            shown = [height for height in heights if height is not None]
            if shown:
                latency_labels.append((shown[-1], f"{label}, {kind}", css))
    parts += _labels(goodput_labels, GOODPUT_LEFT + PANEL_WIDTH + 8)
    parts += _labels(latency_labels, edge + 8)
    return "\n".join([*parts, "</svg>", ""])


def _factor(phase: dict[str, Any], result: dict[str, Any]) -> float:
    return round(float(phase["rate"] * result["mean_tokens"] / result["capacities"][0]), 1)


def _goodput_y(share: float) -> float:
    return HEIGHT - BOTTOM - min(share, MOST_GOODPUT) / MOST_GOODPUT * (HEIGHT - TOP - BOTTOM)


def _latency_y(milliseconds: float) -> float:
    inside = min(max(milliseconds, LEAST_MS), MOST_MS)
    share = math.log(inside / LEAST_MS) / math.log(MOST_MS / LEAST_MS)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _x(left: float, index: int, count: int) -> float:
    return left + 24 + index * (PANEL_WIDTH - 48) / (count - 1)


def _panel(left: float, title: str, ticks: dict[str, float], offered: Sequence[str]) -> list[str]:
    """Draw the axes; ``ticks`` are heights by their labels."""
    right = left + PANEL_WIDTH
    parts = []
    for label, height in ticks.items():
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}"/>')
        place = f'x="{left - 8}" y="{height + 4:.1f}"'
        parts.append(f'<text class="quiet" {place} text-anchor="end">{label}</text>')
    below = HEIGHT - BOTTOM + 20
    for index, label in enumerate(offered):
        across = _x(left, index, len(offered))
        parts.append(f'<text class="quiet" x="{across:.1f}" y="{below}" text-anchor="middle">{label}</text>')
    middle = (left + right) / 2
    axis = f"{title}, against offered load / capacity"
    parts.append(f'<text class="quiet" x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{axis}</text>')
    return parts


def _line(left: float, heights: Sequence[float | None], css: str, *, dots: bool = True) -> str:
    """Join the points that there are."""
    places = [(_x(left, i, len(heights)), height) for i, height in enumerate(heights) if height is not None]
    if not places:
        return ""
    line = " L".join(f"{across:.1f} {down:.1f}" for across, down in places)
    marks = [f'<circle class="{css}" cx="{across:.1f}" cy="{down:.1f}" r="4"/>' for across, down in places]
    return "".join([f'<path class="{css}" d="M{line}"/>', *(marks if dots else [])])


def _labels(labels: list[tuple[float, str, str]], left: float) -> list[str]:
    """Put labels next to the ends of their lines, moved apart where they would touch."""
    placed: list[str] = []
    lowest = 0.0
    for height, label, css in sorted(labels):
        lowest = max(height, lowest + 17 if placed else height)
        placed.append(f'<text class="{css}" x="{left}" y="{lowest + 4:.1f}">{escape(label)}</text>')
    return placed
