"""A check-up for people: versions, device, BLAS, and how fast this machine multiplies matrices."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

from akidb_sidecar import __version__, _blas, _kernels
from akidb_sidecar._printable import line

SIDE = 2048
ROUNDS = 7


def run() -> int:
    """Print the report; the exit code is 1 when only the reference BLAS is there."""
    prepared = _blas.prepare()
    from akidb_sidecar import _device  # noqa: PLC0415 - after its BLAS is there

    warnings, blas = _device.choose("auto"), _device.BLAS
    _report("akidb-sidecar", __version__)
    _report("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    _report("mlx", version("mlx"))
    device = _device.chosen()
    _report("device", device)
    _report("blas", f"{blas.name} ({prepared})")
    _report("kernels", _kernels.prepare(device))
    cores = os.cpu_count() or 1
    for threads in sorted({1, cores}):
        gigaflops = matmul_flops(blas, threads, ROUNDS) / 1e9
        label = f"float32 matmul, {threads} thread{'s' if threads > 1 else ''}"
        _report(label, f"{gigaflops:.0f} GFLOP/s ({SIDE} x {SIDE}, median of {ROUNDS})")
    for warning in warnings + blas.warnings:
        _report("warning", warning)
    return 1 if blas.name == _blas.REFERENCE else 0


def matmul_flops(blas: _blas.Blas, threads: int, rounds: int) -> float:
    """Return the median rate of float32 matrix products in FLOP/s; ``blas`` is the loaded one."""
    import mlx.core as mx  # noqa: PLC0415 - the first library to define a symbol wins

    blas.set_threads(threads)
    matrix = mx.random.normal((SIDE, SIDE))
    mx.eval(matrix)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(seconds)


def _report(name: str, value: str) -> None:
    print(f"{name:28} {line(value)}", file=sys.stdout)  # noqa: T201 - the report
