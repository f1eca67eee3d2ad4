"""``make check-platforms``: everything about macOS and Linux on ARM that can be checked without running it.

What is fetched and built is stored in ``target/platforms``.
"""

from __future__ import annotations

import sys

from bench.processes import REPOSITORY

from platforms import kernels, rust
from platforms.pieces import WORKPLACE, run, run_checks
from platforms.zig import UV, UV_ENVIRONMENT

OTHER = "linux" if sys.platform == "darwin" else "darwin"
SIDECAR = REPOSITORY / "sidecar-py"


def main() -> int:
    """Exit with 1 when a check found something."""
    return run_checks(
        {
            f"clippy for {' and '.join(rust.TARGETS)}": rust.check,
            f"C sources for {' and '.join(kernels.TARGETS)}": kernels.check,
            f"types in Python for {OTHER}": check_types,
            "the locked Python environments of every platform": check_lock,
        }
    )


def check_types() -> None:
    """Run mypy as if on the other system, with a cache of its own."""
    command = [".venv/bin/mypy", "--platform", OTHER, "--cache-dir", str(WORKPLACE / "mypy")]
    run(command, SIDECAR)


def check_lock() -> None:
    """Resolve the environments anew; the lock file must say the same."""
    run([str(UV), "lock", "--check", "--quiet"], SIDECAR, UV_ENVIRONMENT)


if __name__ == "__main__":
    sys.exit(main())
