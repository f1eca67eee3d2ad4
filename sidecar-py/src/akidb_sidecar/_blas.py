"""A fast BLAS for MLX on Linux.

MLX's CPU wheel for Linux carries the reference BLAS: 2-5 GFLOP/s in float32 where OpenBLAS has 80-100 on the
same core. Symbols of a library that is global before MLX is loaded win over those of the wheel, so
:func:`load` makes one global: the PyPI package ``scipy-openblas32`` behind a small alias library
(``native/blas_alias.c``), else the system's OpenBLAS, else none, with a warning. On macOS there is nothing to
do: MLX uses Metal and Accelerate.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_sidecar._compiler import BuildError
from akidb_sidecar._native import FOLDER, Library

if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")
REPLACED_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
REFERENCE = "reference"
OFF = "AKIDB_REFERENCE_BLAS"
"""Set to 1 to see how slow MLX is on its own."""


@dataclass(frozen=True)
class Blas:
    """The library that was made global."""

    name: str
    warnings: tuple[str, ...]
    set_threads: Callable[[int], None]


def prepare() -> str:
    """Compile the alias library where that is needed; return what was done. Never raises."""
    if not sys.platform.startswith("linux"):
        return "nothing to do on this platform"
    openblas = _packaged_openblas()
    if openblas is None:
        return "scipy-openblas32 is not installed"
    try:
        return f"alias library at {_alias(openblas).prepare()}"
    except (OSError, BuildError) as error:
        return f"alias library not built: {error}"


def is_off() -> bool:
    """Whether the user wants MLX as its wheel brings it."""
    return os.environ.get(OFF) == "1"


def load() -> Blas:
    """Make a fast BLAS global. Call it before MLX is imported."""
    if not sys.platform.startswith("linux"):
        return Blas("accelerate", (), lambda _threads: None)
    if is_off():
        return _reference(f"{OFF} is set")
    problems = []
    for find in (_load_packaged, _load_system):
        try:
            return find()
        except (OSError, AttributeError, BuildError) as error:
            problems.append(str(error))
    return _reference("; ".join(problems))


def _reference(reason: str) -> Blas:
    warning = (
        f"only the reference BLAS is there, which is 20 to 50 times slower ({reason}); "
        "the system's OpenBLAS (Debian: libopenblas0-pthread) would do, too"
    )
    return Blas(REFERENCE, (warning,), lambda _threads: None)


def _load_packaged() -> Blas:
    path = _packaged_openblas()
    if path is None:
        raise OSError("scipy-openblas32 is not installed")
    openblas = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    alias = _alias(path).load(ctypes.RTLD_GLOBAL)
    name = _describe(openblas.scipy_openblas_get_config)
    return Blas(name, alias.warnings, openblas.scipy_openblas_set_num_threads)


def _load_system() -> Blas:
    for name in SYSTEM_LIBRARIES:
        try:
            openblas = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return Blas(_describe(openblas.openblas_get_config), (), openblas.openblas_set_num_threads)
    raise OSError("the system has no libopenblas")


def _describe(get_config: Callable[[], int]) -> str:
    get_config.restype = ctypes.c_char_p  # type: ignore[attr-defined]
    words = get_config().decode().split()  # type: ignore[attr-defined]
    return f"openblas {words[1]} {words[-2]}" if len(words) > 3 else "openblas"


def _packaged_openblas() -> Path | None:
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("lib") / "libscipy_openblas.so"
    return path if path.is_file() else None


def _alias(openblas: Path) -> Library:
    return Library(
        name="blas-alias", sources=(FOLDER / "blas_alias.c",), symbols=REPLACED_FUNCTIONS, needed=(openblas,)
    )
