"""A C compiler that compiles for every machine: Zig's, from PyPI, pinned with its digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.processes import PYTHON, REPOSITORY

from platforms.pieces import WORKPLACE, FailedError, MissingError, make, run

REQUIREMENTS = Path(__file__).with_name("zig-requirements.txt")
UV = REPOSITORY / ".tools" / "bin" / "uv"
UV_ENVIRONMENT = {"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "true"}


def compiler() -> tuple[list[str], dict[str, str]]:
    """Return the compiler's command, which wants a ``-target``, and its environment."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    try:
        folder = make(WORKPLACE / f"zig-{digest}", _install)
    except FailedError as error:
        raise MissingError(f"Zig cannot be fetched from the package index: {error}") from error
    caches = {f"ZIG_{kind}_CACHE_DIR": str(WORKPLACE / "zig-cache") for kind in ("GLOBAL", "LOCAL")}
    return [str(folder / "ziglang" / "zig"), "cc"], caches


def _install(folder: Path) -> None:
    install = [str(UV), "pip", "install", "--quiet", "--python", str(PYTHON), "--target", str(folder)]
    install += ["--require-hashes", "--no-deps", "-r", str(REQUIREMENTS)]
    run(install, environment=UV_ENVIRONMENT)
