"""A fast BLAS for MLX on Linux. The only file in which platforms differ.

MLX's CPU wheel for Linux carries the reference BLAS: 2-5 GFLOP/s in float32 where OpenBLAS has 80-100 on the
same core. Symbols of a library that is global before MLX is loaded win over those of the wheel, so
:func:`load` makes one global: the PyPI package ``scipy-openblas32`` behind a small alias library
(``_blas_alias.c``, compiled once by the C compiler into a private cache), else the system's OpenBLAS, else none,
with a warning. On macOS there is nothing to do: MLX uses Metal and Accelerate.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("_blas_alias.c")
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")
OFF = "AKIDB_REFERENCE_BLAS"
"""Set to 1 to see how slow the reference BLAS is."""


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
        return f"alias library at {_cached_alias(openblas)}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"alias library not built: {error}"


def load() -> Blas:
    """Make a fast BLAS global. Call it before MLX is imported."""
    if not sys.platform.startswith("linux"):
        return Blas("accelerate", (), lambda _threads: None)
    if os.environ.get(OFF) == "1":
        return _reference(f"{OFF} is set")
    problems = []
    for find in (_load_packaged, _load_system):
        try:
            return find()
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            problems.append(str(error))
    return _reference("; ".join(problems))


def _reference(reason: str) -> Blas:
    warning = (
        "only the reference BLAS is there, which is 20 to 50 times slower: install a C compiler or the system's "
        f"OpenBLAS (Debian: libopenblas0-pthread) and start again ({reason})"
    )
    return Blas("reference", (warning,), lambda _threads: None)


def _load_packaged() -> Blas:
    path = _packaged_openblas()
    if path is None:
        raise OSError("scipy-openblas32 is not installed")
    openblas = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_cached_alias(path)), mode=ctypes.RTLD_GLOBAL)
    return Blas(_describe(openblas.scipy_openblas_get_config), (), openblas.scipy_openblas_set_num_threads)


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


def _cached_alias(openblas: Path) -> Path:
    """Return the alias library, compiling it on the first call on this machine."""
    key = hashlib.sha256(SOURCE.read_bytes() + str(openblas).encode() + os.uname().machine.encode())
    folder = cache_folder()
    library = folder / f"blas-alias-{key.hexdigest()[:16]}.so"
    if not library.is_file():
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise OSError("there is no C compiler")
        # Each process compiles under a name of its own; the rename decides, and either result serves.
        with tempfile.TemporaryDirectory(dir=folder) as workplace:
            built = Path(workplace) / "alias.so"
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(built), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603 - our own source
            built.rename(library)
    return library


def cache_folder() -> Path:
    """Return a folder that only this user can write to: code is loaded from it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    folder = Path(base) / "akidb"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{folder} belongs to another user, or others may write to it")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except OSError as error:
        raise OSError(f"no private cache folder: {error}") from error
    return folder
