"""``python -m qwen3.measure``: what Qwen3-Embedding-0.6B costs on this machine, as a table and a plot.

It makes the checkpoint of true geometry when it is not there (see :mod:`qwen3.checkpoint`), and writes
``target/qwen3/results.json`` and ``docs/memory.svg``. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import time
from typing import Any

from bench.processes import PYTHON, REPOSITORY, Child
from bench.progress import Progress
from stress.gateway import PATH, Gateway

from qwen3 import checkpoint, plot

WORKPLACE = REPOSITORY / "target" / "qwen3"
PLOT = REPOSITORY / "docs" / "memory.svg"
TINY = REPOSITORY / "sidecar-py" / "tests" / "golden" / "tiny-qwen3-4bit"
WAYS = ("float32", "quantized")
FLOP_PER_TOKEN = 2 * checkpoint.LAYERS * sum(rows * columns for rows, columns in checkpoint.MATRICES.values())
"""Of the linear layers alone."""
SHAPES = {
    "one text of 12 tokens": ([12], 9),
    "one text of 512 tokens": ([512], 5),
    "16 texts of 32 tokens": ([32] * 16, 5),
}
LONG_TEXT = 8192
REQUESTS = 30
GROWTH_TEXTS, GROWTH_LONGEST, POINTS = 2000, 2000, 100
MEBIBYTE = 1 << 20


def main() -> None:
    """Measure, print the table, write the plot."""
    parser = argparse.ArgumentParser(prog="python -m qwen3.measure", description=__doc__)
    parser.add_argument("--without-long-text", action="store_true", help=f"leave {LONG_TEXT} tokens out")
    flags = parser.parse_args()
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    checkpoint.make_once(progress)
    results: dict[str, Any] = {"threads": os.cpu_count() or 1, "ways": {}}
    for way in WAYS:
        results["ways"][way] = engine(
            way, results["threads"], progress, long_text=not flags.without_long_text
        )
        results["ways"][way]["gateway"] = gateway(way, progress)
    print(table(results), file=sys.stdout, flush=True)  # noqa: T201 - the table
    results["growth"] = {
        "own kernels": growth({}, results["threads"], progress, GROWTH_LONGEST),
        # Without kernels and without OpenBLAS, which is slower still.
        "MLX": growth({"AKIDB_REFERENCE_BLAS": "1"}, 1, progress, GROWTH_LONGEST // 16),
    }
    (WORKPLACE / "results.json").write_text(json.dumps(results, indent=1))
    PLOT.write_text(plot.draw(results["growth"]))
    progress.say(f"written: {WORKPLACE.relative_to(REPOSITORY)}/results.json, {PLOT.relative_to(REPOSITORY)}")


def engine(way: str, threads: int, progress: Progress, *, long_text: bool) -> dict[str, Any]:
    """Measure a worker's engine alone."""
    shapes = dict(SHAPES)
    if long_text:
        shapes[f"one text of {LONG_TEXT} tokens"] = ([LONG_TEXT], 1)
    with _child(way, str(checkpoint.FOLDER), 32_768, way, {}) as child:
        child.receive()  # it is ready
        measured: dict[str, Any] = {"loaded": child.ask({"what": "loaded"})}
        for name, (lengths, rounds) in shapes.items():
            progress.say(f"{way}: {name}")
            question = {"what": "embed", "lengths": lengths, "rounds": rounds, "threads": threads}
            measured[name] = child.ask({**question, "flop": FLOP_PER_TOKEN * sum(lengths)})
            measured[name]["tokens_per_second"] = sum(lengths) / measured[name]["seconds"]
    return measured


def gateway(way: str, progress: Progress) -> dict[str, Any]:
    """Measure one connection to a gateway with one worker."""
    progress.say(f"{way}: through the gateway")
    flags = ["--model", str(checkpoint.FOLDER), "--cpu-weights", way]
    flags += ["--served-model-name", "qwen3-0.6b-4bit"]
    started = time.monotonic()
    with Gateway(f"gateway-{way}", flags, 1, {}, WORKPLACE) as running:
        ready_seconds = time.monotonic() - started
        connection = http.client.HTTPConnection(running.address, timeout=60)
        seconds, tokens = [], 0
        for _ in range(REQUESTS):
            body = json.dumps({"texts": ["What is the capital"]})
            begun = time.perf_counter()
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            seconds.append(time.perf_counter() - begun)
            tokens = answer["usage"]["total_tokens"]
        connection.close()
    return {"ready_seconds": ready_seconds, "p50_seconds": statistics.median(seconds), "tokens": tokens}


def growth(environment: dict[str, str], threads: int, progress: Progress, longest: int) -> dict[str, Any]:
    """Measure the memory over many texts of random length, with a small model so that it takes minutes."""
    progress.say(f"memory over {GROWTH_TEXTS} texts of 1 to {longest} tokens")
    with _child("growth", str(TINY), 2048, "float32", environment) as child:
        child.receive()  # it is ready
        question = {
            "what": "texts",
            "texts": GROWTH_TEXTS // POINTS,
            "longest": longest,
            "threads": threads,
        }
        resident = [child.ask(question)["resident_bytes"] for _ in range(POINTS)]
    return {"longest": longest, "texts": GROWTH_TEXTS, "resident_bytes": resident}


def _child(name: str, model: str, max_tokens: int, way: str, environment: dict[str, str]) -> Child:
    command = [str(PYTHON), "-m", "qwen3.engine", model, str(max_tokens), way]
    environment = {"PYTHONPATH": str(REPOSITORY / "scripts"), **environment}
    return Child(name, command, environment, talks=True, workplace=WORKPLACE)


def table(results: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    ways = results["ways"]
    lines = ["| | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    loaded = [way["loaded"] for way in ways.values()]
    row("weights loaded after", [f"{entry['seconds']:.1f} s" for entry in loaded])
    row("memory of the worker", [f"{entry['resident_bytes'] / MEBIBYTE:,.0f} MiB" for entry in loaded])
    row("most while it loaded", [f"{entry['peak_bytes'] / MEBIBYTE:,.0f} MiB" for entry in loaded])
    for name in (name for name in next(iter(ways.values())) if name not in ("loaded", "gateway")):
        cells = [
            f"{way[name]['seconds'] * 1000:,.0f} ms, {way[name]['tokens_per_second']:,.0f} tokens/s, "
            f"{way[name]['share']:.2f} of the peak"
            for way in ways.values()
        ]
        row(name, cells)
    long_text = f"one text of {LONG_TEXT} tokens"
    if long_text in next(iter(ways.values())):
        above = [way[long_text]["peak_bytes"] - way["loaded"]["resident_bytes"] for way in ways.values()]
        row("memory above the weights for it", [f"{bytes_ / MEBIBYTE:,.0f} MiB" for bytes_ in above])
    through = [way["gateway"] for way in ways.values()]
    row("gateway ready after", [f"{entry['ready_seconds']:.1f} s" for entry in through])
    row(
        f"{through[0]['tokens']} tokens through the gateway, p50",
        [f"{entry['p50_seconds'] * 1000:.0f} ms" for entry in through],
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
