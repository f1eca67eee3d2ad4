"""The C sources, compiled for other machines than this one, with the flags that the workers use there."""

from __future__ import annotations

from pathlib import Path

from bench.processes import REPOSITORY

from akidb_sidecar import _blas, _compiler, _kernels, _native
from platforms import zig
from platforms.pieces import WORKPLACE, run

STRICT = ("-Wall", "-Wextra", "-Werror")
TARGETS = {"aarch64-macos.14.0": "apple_m1", "aarch64-linux-gnu": "neoverse_n1"}
"""The systems, and the processors that stand for ``native``."""
DRIVER = REPOSITORY / "sidecar-py" / "tests" / "native_driver.c"


def check() -> None:
    """Compile and link the libraries and the tests' program; a warning is an error."""
    compiler, environment = zig.compiler()
    results = WORKPLACE / "kernels"
    results.mkdir(parents=True, exist_ok=True)
    # macOS has a BLAS of its own.
    alias = _blas._alias(Path("/openblas.so"))
    for target, processor in TARGETS.items():
        libraries = [_kernels.LIBRARY] if "macos" in target else [_kernels.LIBRARY, alias]
        for library in libraries:
            command = [*compiler, "-target", target, f"-mcpu={processor}", *_compiler.FLAGS, *STRICT]
            command += ["-o", str(results / f"{library.name}-{target}"), *map(str, library.sources), "-lm"]
            run(command, environment=environment)
        command = [*compiler, "-target", target, "-std=gnu11", *STRICT, "-pthread", "-I", str(_native.FOLDER)]
        command += ["-o", str(results / f"driver-{target}"), str(DRIVER)]
        run([*command, *map(str, _kernels.LIBRARY.sources), "-lm"], environment=environment)
