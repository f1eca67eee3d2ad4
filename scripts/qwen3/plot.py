"""Memory of a worker over many texts, as an SVG in the style of the one of ``make bench``."""

from __future__ import annotations

from typing import Any

from bench.plot import STYLE

WIDTH, HEIGHT = 820, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 62, 56
TITLE = "Memory of a worker over texts of random length"
CLASSES = ("a", "b")
STEP_MEBIBYTES = 20
MEBIBYTE = 1 << 20


def draw(growth: dict[str, dict[str, Any]]) -> str:
    """Return the SVG; each curve has its own number of tokens in the longest text."""
    highest = max(max(curve["resident_bytes"]) for curve in growth.values()) / MEBIBYTE
    top = STEP_MEBIBYTES * (int(highest // STEP_MEBIBYTES) + 1)
    texts = next(iter(growth.values()))["texts"]

    def x(share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(mebibytes: float) -> float:
        return HEIGHT - BOTTOM - mebibytes / top * (HEIGHT - TOP - BOTTOM)

    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{TITLE}</text>',
        f'<text class="quiet" x="{LEFT}" y="44">resident MiB, one text at a time, a tiny Qwen3</text>',
    ]
    for mebibytes in range(0, top + 1, STEP_MEBIBYTES):
        line = f'x1="{x(0)}" x2="{x(1)}" y1="{y(mebibytes):.1f}" y2="{y(mebibytes):.1f}"'
        parts.append(f'<line class="grid" {line}/>')
        label = f'x="{LEFT - 8}" y="{y(mebibytes) + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="quiet" {label}>{mebibytes}</text>')
    for quarter in range(5):
        label = f'x="{x(quarter / 4):.1f}" y="{HEIGHT - BOTTOM + 22}" text-anchor="middle"'
        parts.append(f'<text class="quiet" {label}>{texts * quarter // 4}</text>')
    middle = f'x="{x(0.5):.1f}" y="{HEIGHT - 12}" text-anchor="middle"'
    parts.append(f'<text class="quiet" {middle}>texts embedded</text>')
    for css, (name, curve) in zip(CLASSES, growth.items(), strict=True):
        resident = [bytes_ / MEBIBYTE for bytes_ in curve["resident_bytes"]]
        points = " ".join(
            f"{'L' if index else 'M'}{x((index + 1) / len(resident)):.1f} {y(value):.1f}"
            for index, value in enumerate(resident)
        )
        parts.append(f'<path class="{css}" d="{points}"/>')
        for below, style, text in ((4, css, name), (20, "quiet", f"1 to {curve['longest']} tokens")):
            place = f'x="{x(1) + 10:.1f}" y="{y(resident[-1]) + below:.1f}"'
            parts.append(f'<text class="{style}" {place}>{text}</text>')
    return "\n".join([*parts, "</svg>", ""])
