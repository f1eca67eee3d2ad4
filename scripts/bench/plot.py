"""Throughput against connections, as an SVG that is readable on light and on dark pages."""

from __future__ import annotations

from html import escape
from typing import Any

from bench.figures import FLOP_PER_TOKEN
from bench.measure import CONNECTIONS

WIDTH, HEIGHT = 820, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 62, 56
SERIES = {
    "akidb": ("akidb-gateway", "a"),
    "infinity-onnx": ("infinity, ONNX", "b"),
    "infinity-torch": ("infinity, torch", "c"),
    "mosec": ("mosec, torch", "d"),
}
"""Systems that are drawn, with their labels and CSS classes."""
TITLE = "Texts per second against connections"
LABEL_GAP = 17
TICKS = 6

STYLE = """
  text { font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .quiet { fill: #57606a; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .peak { stroke: #57606a; stroke-width: 1.5; stroke-dasharray: 6 5; }
  path { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
  .a { stroke: #0969da; } .b { stroke: #bc4c00; } .c { stroke: #8250df; } .d { stroke: #1a7f37; }
  text.a { fill: #0969da; stroke: none; font-weight: 600; } text.b { fill: #bc4c00; stroke: none; }
  text.c { fill: #8250df; stroke: none; } text.d { fill: #1a7f37; stroke: none; }
  circle.a { fill: #0969da; } circle.b { fill: #bc4c00; }
  circle.c { fill: #8250df; } circle.d { fill: #1a7f37; }
  path.a { stroke-width: 3.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .quiet { fill: #9198a1; } .grid { stroke: #3d444d; } .peak { stroke: #9198a1; }
    .a { stroke: #4493f8; } .b { stroke: #f0883e; } .c { stroke: #ab7df8; } .d { stroke: #3fb950; }
    text.a { fill: #4493f8; } text.b { fill: #f0883e; }
    text.c { fill: #ab7df8; } text.d { fill: #3fb950; }
    circle.a { fill: #4493f8; } circle.b { fill: #f0883e; }
    circle.c { fill: #ab7df8; } circle.d { fill: #3fb950; }
  }
"""


def draw(summary: dict[str, Any]) -> str:
    """Return the SVG; connections stand at even distances, because they are few and far apart."""
    curves = {name: _curve(summary, name) for name in SERIES}
    curves = {name: curve for name, curve in curves.items() if curve}
    peak = _peak(summary)
    highest = max([peak or 1.0, *(rate for curve in curves.values() for rate in curve.values())])
    step = _step(highest / TICKS)
    top = step * -(-highest * 1.02 // step)

    def x(connections: int) -> float:
        return (
            LEFT + 24 + CONNECTIONS.index(connections) * (WIDTH - LEFT - RIGHT - 48) / (len(CONNECTIONS) - 1)
        )

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - rate / top * (HEIGHT - TOP - BOTTOM)

    mean = summary["settings"]["mean_tokens"]["natural"]
    subtitle = (
        f"one text a request, {mean:.0f} tokens on average; all-MiniLM-L6-v2 in float32; {_machine(summary)}"
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{TITLE}</text>',
        f'<text class="quiet" x="{LEFT}" y="44">{escape(subtitle)}</text>',
    ]
    for tick in range(round(top / step) + 1):
        rate = tick * step
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}"/>'
        )
        parts.append(
            f'<text class="quiet" x="{LEFT - 10}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.0f}</text>'
        )
    below = HEIGHT - BOTTOM + 22
    parts += [
        f'<text class="quiet" x="{x(number):.1f}" y="{below}" text-anchor="middle">{number}</text>'
        for number in CONNECTIONS
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="quiet" x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">connections</text>'
    )
    labels: list[tuple[float, str, str]] = []
    if peak:
        parts.append(
            f'<line class="peak" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(peak):.1f}" y2="{y(peak):.1f}"/>'
        )
        labels.append((y(peak), "OpenBLAS on 2 cores", "quiet"))
    for name, curve in reversed(curves.items()):
        label, css = SERIES[name]
        places = [(x(number), y(rate)) for number, rate in curve.items()]
        line = " L".join(f"{across:.1f} {down:.1f}" for across, down in places)
        parts.append(f'<path class="{css}" d="M{line}"/>')
        parts += [
            f'<circle class="{css}" cx="{across:.1f}" cy="{down:.1f}" r="4"/>' for across, down in places
        ]
        labels.append((places[-1][1], f"{label}: {list(curve.values())[-1]:.0f}", css))
    parts += _labels(labels)
    return "\n".join([*parts, "</svg>", ""])


def _labels(labels: list[tuple[float, str, str]]) -> list[str]:
    """Put the labels next to the ends of their lines, moved apart where they would touch."""
    placed: list[str] = []
    lowest = 0.0
    for height, label, css in sorted(labels):
        lowest = max(height, lowest + LABEL_GAP if placed else height)
        placed.append(
            f'<text class="{css}" x="{WIDTH - RIGHT + 10}" y="{lowest + 4:.1f}">{escape(label)}</text>'
        )
    return placed


def _curve(summary: dict[str, Any], system: str) -> dict[int, float]:
    rows = [row for row in summary["rows"] if row["system"] == system]
    chosen = [row for row in rows if row["shape"] == "natural" and row["per_request"] == 1]
    return {
        row["connections"]: row["texts_per_second"] for row in chosen if row["connections"] in CONNECTIONS
    }


def _peak(summary: dict[str, Any]) -> float | None:
    flops = summary["machine"]["matmul_peak_flops"].get("2")
    if flops is None:
        return None
    rate: float = flops / FLOP_PER_TOKEN / summary["settings"]["mean_tokens"]["natural"]
    return rate


def _machine(summary: dict[str, Any]) -> str:
    return f"{summary['machine']['cores']} cores"


def _step(rough: float) -> float:
    """Return a round distance between ticks, at least as large."""
    magnitude: float = 10.0 ** (len(str(max(1, int(rough)))) - 1)
    return next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough)
