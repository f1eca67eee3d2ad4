"""The results as a table for people and as JSON for programs."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import environments
from bench.acceptance import targets
from bench.figures import FLOP_PER_TOKEN, medians
from bench.measure import ENGINE_SETUPS, Point, Round
from bench.phases import PHASES
from bench.systems import all_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.acceptance import Target
    from bench.measure import Corpus, Plan

SAME_VECTOR_COSINE = 0.9999
LEAST_OF_BEST_PEAK = 0.85


def summarize(rounds: Sequence[Round], plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """Return everything that the table and the plot show."""
    peak = {
        threads: statistics.median(r.peak[threads] for r in rounds if r.peak) for threads in _threads(rounds)
    }
    rows = [_row(point, rounds, peak) for point in _in_order(rounds, "points")]
    facts = []
    abouts = {server.name: server.about for server in all_servers(plan.model, plan.onnx_model)}
    for name in _in_order(rounds, "systems"):
        measured = [r.systems[name] for r in rounds if name in r.systems]
        facts.append({"system": name, "about": abouts.get(name, "in process"), **medians(measured)})
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "matmul_peak_flops": {str(threads): flops for threads, flops in peak.items()},
            "matmul_peak_flops_by_round": [r.peak for r in rounds],
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {
            "rounds": len(rounds),
            "seconds": plan.seconds,
            "mean_tokens": corpus.mean_tokens(),
            "tokenizer_bytes": corpus.tokenizer_bytes,
            "flop_per_token": FLOP_PER_TOKEN,
        },
        "rows": rows,
        "systems": facts,
        "broken": {name: why for r in rounds for name, why in r.broken.items()},
        "cosine": _cosines(rounds),
        "targets": [asdict(t) | {"verdict": t.verdict} for t in targets(rounds, corpus.tokenizer_bytes)],
        "rounds": [[{**point._asdict(), **values} for point, values in r.points.items()] for r in rounds],
    }


def _row(point: Point, rounds: Sequence[Round], peak: dict[int, float]) -> dict[str, Any]:
    figures = medians([r.points[point] for r in rounds if point in r.points])
    processes, threads = ENGINE_SETUPS.get(point.system, (1, 2))
    cores = processes * threads
    if cores in peak:
        figures["share_of_peak"] = figures["tokens_per_second"] * FLOP_PER_TOKEN / peak[cores]
    return {**point._asdict(), **figures}


def table(summary: dict[str, Any], targets_measured: Sequence[Target]) -> str:
    """Return the table for people."""
    machine, settings = summary["machine"], summary["settings"]
    peaks = [f"{flops / 1e9:.0f} on {threads}" for threads, flops in machine["matmul_peak_flops"].items()]
    tokens = ", ".join(f"{shape} {mean:.1f}" for shape, mean in settings["mean_tokens"].items())
    times = "|".join(f"p{percent} ms" for percent in (50, 95, 99))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        f"medians of {settings['rounds']} round(s), {settings['seconds']:g} s a measurement",
        f"float32 matmul peak in GFLOP/s, by threads: {', '.join(peaks) or 'not measured'}",
        f"mean tokens a text: {tokens}",
        "",
        *_aligned(
            f"system|texts|a request|connections|requests/s|texts/s|tokens/s|{times}|errors|of peak",
            [_cells(row) for row in summary["rows"]],
        ),
        "",
        *_aligned("system|memory MB|first answer s|what", [_fact_cells(fact) for fact in summary["systems"]]),
        "",
    ]
    in_phases = [row for row in summary["rows"] if "phase_total_ms" in row]
    if in_phases:
        columns = "|".join("rest" if phase == "http" else phase for phase in PHASES)
        head = f"system|texts|a request|connections|texts a batch|mean ms|{columns}"
        lines += [*_aligned(head, [_phase_cells(row) for row in in_phases]), ""]
    lines += [f"NOT MEASURED: {name}: {why}" for name, why in summary["broken"].items()]
    lines += _disturbances(machine["matmul_peak_flops_by_round"])
    for name, cosine in summary["cosine"].items():
        if cosine < SAME_VECTOR_COSINE:
            lines.append(f"WARNING: the vectors of {name} differ from the others': cosine {cosine:.6f}")
    cells = [_target_cells(target) for target in targets_measured]
    lines += _aligned("line|target (median of the rounds' own ratios)|measured|wanted|verdict", cells)
    lines.append("line 7, that the vectors are right, is checked by `make test`")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    batch = f" (batch {row['batch']})" if row["batch"] else ""
    connections = str(row["connections"] or "in process")
    share = f"{row['share_of_peak']:.2f}" if "share_of_peak" in row and _computes(row["system"]) else ""
    rates = [row[f"{what}_per_second"] for what in ("requests", "texts", "tokens")]
    times = [f"{row[f'p{percent}_ms']:.2f}" for percent in (50, 95, 99)]
    place = [row["system"] + batch, row["shape"], str(row["per_request"]), connections]
    return [
        *place,
        *(f"{rate:,.1f}" if rate < 1000 else f"{rate:,.0f}" for rate in rates),
        *times,
        f"{row['errors']:.0f}",
        share,
    ]


def _phase_cells(row: dict[str, Any]) -> list[str]:
    place = [row["system"], row["shape"], str(row["per_request"]), str(row["connections"])]
    times = [f"{row[f'phase_{phase}_ms']:.2f}" for phase in ("total", *PHASES)]
    return [*place, f"{row['phase_batch_texts']:.1f}", *times]


def _computes(system: str) -> bool:
    return not system.startswith(("echo", "hello"))


def _fact_cells(fact: dict[str, Any]) -> list[str]:
    ready = f"{fact['ready_seconds']:.2f}" if "ready_seconds" in fact else ""
    memory = f"{fact['memory_bytes'] / 1e6:.0f}" if "memory_bytes" in fact else ""
    return [fact["system"], memory, ready, fact["about"]]


def _target_cells(target: Target) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}" if not target.unit else f"{value:.2f} {target.unit}"

    sign = "<=" if target.at_most else ">="
    return [
        str(target.number),
        target.what,
        shown(target.value),
        f"{sign} {shown(target.limit)}",
        target.verdict,
    ]


def _aligned(head: str, rows: list[list[str]]) -> list[str]:
    """Line columns up: numbers to the right, words to the left."""
    cells = [head.split("|"), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    numeric = [
        all(not row[column] or row[column][0].isdigit() or row[column] == "in process" for row in rows)
        for column in range(len(widths))
    ]

    def line(row: list[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(cells[0]), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def _disturbances(peaks: list[dict[int, float]]) -> list[str]:
    """Say which rounds were measured while something else kept a core busy: their matmul peak is lower."""
    lines = []
    for threads in sorted({threads for peak in peaks for threads in peak}):
        best = max(peak.get(threads, 0.0) for peak in peaks)
        low = [
            str(i) for i, peak in enumerate(peaks, 1) if peak.get(threads, best) < LEAST_OF_BEST_PEAK * best
        ]
        if low:
            where = f"round {', '.join(low)}: the matmul peak on {threads} threads was far below the others'"
            lines.append(f"WARNING: {where}: something else used the machine")
    return lines


def _threads(rounds: Sequence[Round]) -> list[int]:
    return sorted({threads for r in rounds for threads in r.peak})


def _in_order(rounds: Sequence[Round], part: str) -> list[Any]:
    """Return the keys of all rounds in the order in which they first came."""
    return list(dict.fromkeys(key for r in rounds for key in getattr(r, part)))


def _cosines(rounds: Sequence[Round]) -> dict[str, float]:
    """Return for each server how near its vector of one text is to that of the first server."""
    vectors = {name: vector for r in rounds for name, vector in r.vectors.items()}
    first = next(iter(vectors.values()), [])
    return {name: _cosine(first, vector) for name, vector in vectors.items()}


def _cosine(one: list[float], other: list[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths


def processor() -> str:
    """Return the processor's name."""
    if sys.platform == "darwin":
        return environments.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], "sysctl").strip()
    # Where Linux names the processor at all.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
