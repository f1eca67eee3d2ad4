"""Libraries of our own C sources, compiled on the user's machine for the user's machine.

Code for the machine's own vectors is several times faster than code for every machine of its kind, and a
package of Python files and C sources needs no wheel per machine. The result is kept in a private folder, so
only the first start on a machine takes the second of a compilation.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("native")
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
TUNINGS = (("-march=native",), ("-mcpu=native",), ())
"""In the order in which they are tried: not every compiler knows each of them on every machine."""
COMPILE_TIMEOUT_SECONDS = 60


class BuildError(Exception):
    """The library is not to be had; the message is one line for a person."""


@dataclass(frozen=True)
class Library:
    """What to compile."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    facts: tuple[str, ...] = ()
    """What else the result depends on."""
    tunings: tuple[tuple[str, ...], ...] = TUNINGS

    def prepare(self) -> Path:
        """Return where the library lies in the cache, compiling it on the first call on this machine."""
        path = _cache_folder() / f"{self.name}-{self._key()}.so"
        if not path.is_file():
            # Each process compiles under a name of its own; the rename decides, and either result serves.
            with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
                built = Path(workplace) / path.name
                self._compile(built)
                built.rename(path)
        return path

    def load(self, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
        """Return the loaded library; where there is no cache, from a folder that is gone thereafter."""
        try:
            try:
                return ctypes.CDLL(str(self.prepare()), mode=mode)
            except _NoCacheError:
                with tempfile.TemporaryDirectory(prefix="akidb-") as workplace:
                    built = Path(workplace) / f"{self.name}.so"
                    self._compile(built)
                    return ctypes.CDLL(str(built), mode=mode)
        except OSError as error:
            raise BuildError(f"`{self.name}` cannot be built or loaded: {error}") from error

    def _compile(self, built: Path) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise BuildError("there is no C compiler")
        reason = ""
        for tuning in self.tunings:
            command = [compiler, *FLAGS, *tuning, "-o", str(built), *map(str, self.sources), "-lm"]
            try:
                subprocess.run(  # noqa: S603 - our own sources
                    command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_SECONDS
                )
            except subprocess.CalledProcessError as error:
                reason = " ".join(error.stderr.decode(errors="replace").split())[:200]
            except subprocess.TimeoutExpired:
                reason = f"not done after {COMPILE_TIMEOUT_SECONDS} s"
            else:
                return
        raise BuildError(f"`{compiler}` failed: {reason}")

    def _key(self) -> str:
        parts = [file.read_bytes() for file in (*self.sources, *self.headers)]
        parts += [repr((FLAGS, self.tunings, self.facts)).encode(), _processor()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


class _NoCacheError(OSError):
    """There is no folder that only this user can write to."""


def _cache_folder() -> Path:
    """Return a folder that only this user can write to: code is loaded from it."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        folder = Path(base) / "akidb"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{folder} belongs to another user, or others may write to it")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as error:
        raise _NoCacheError(f"no private cache folder: {error}") from error
    return folder


def _processor() -> bytes:
    """Return what compiled code depends on: machines of different kinds can share a home folder."""
    kinds = {os.uname().machine.encode()}
    information = Path("/proc/cpuinfo")
    if information.is_file():
        wanted = (b"flags", b"Features", b"CPU part", b"model name")
        kinds |= {line for line in information.read_bytes().splitlines() if line.startswith(wanted)}
    return b"\n".join(sorted(kinds))
