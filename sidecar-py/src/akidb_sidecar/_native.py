"""Libraries of our own C sources, compiled on the user's machine for the user's machine.

Code for the machine's own vectors is several times faster than code for every machine of its kind, and a
package of Python files and C sources needs no wheel per machine. The result is kept in a private folder, so
only the first start on a machine takes the second of a compilation.

A library in the cache is used when its folder is this user's alone, and its content has the digest that was
written with it. It is mapped from a private copy: nothing that happens to the file afterwards can reach a
running worker, and it does not matter whether the cache is on a file system that forbids execution. What is
missing, damaged or does not load is compiled anew; where the cache cannot be used, at each start.

On Linux the copy is in memory or reached through its descriptor. macOS has neither: there it is in a folder
to which nobody else can swap the way (:func:`_private_folder.temporary_folders`), and is loaded by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import platform
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_sidecar import _private_folder
from akidb_sidecar._compiler import (
    FLAGS,
    TUNINGS,
    BuildError,
    compile_library,
    configured,
    printable,
    reason_of,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from akidb_sidecar._private_folder import Folder

FOLDER = Path(__file__).with_name("native")
NAME_BYTES = 256
"""Room for the name of a processor."""
DIGEST_BYTES = hashlib.sha256().digest_size
TRIAL = """
import ctypes, sys
symbols, *needed, path = sys.argv[1:]
for library in needed:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(path)
for symbol in symbols.split():
    getattr(library, symbol)
"""
"""Run in a process of its own: what some compiler made may end the process that loads it."""

_loads = itertools.count()


@dataclass(frozen=True)
class Loaded:
    """A library that is loaded, and what a person should know about it."""

    functions: ctypes.CDLL
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """What to compile."""

    name: str
    sources: tuple[Path, ...]
    symbols: tuple[str, ...]
    """What it must have."""
    headers: tuple[Path, ...] = ()
    needed: tuple[Path, ...] = ()
    """Libraries that are made global before it is loaded."""
    tunings: tuple[tuple[str, ...], ...] = TUNINGS

    def prepare(self) -> str:
        """Have a good library in the cache and return its path; raise :class:`BuildError` or ``OSError``."""
        name = self._file_name()
        with _private_folder.open_cache() as cache:
            cache.clean()
            if _kept(cache, name) is None:
                _, trouble = self._build(cache, name)
                if trouble:
                    raise BuildError(trouble)
            return f"{cache.path}/{name}"

    def load(self, mode: int = ctypes.DEFAULT_MODE) -> Loaded:
        """Return the loaded library, from the cache if a good one is there; raise :class:`BuildError`."""
        name = self._file_name()
        cache, trouble = None, ""
        with contextlib.ExitStack() as folders:
            try:
                cache = folders.enter_context(_private_folder.open_cache())
            except OSError as error:
                trouble = self._not_kept(reason_of(error))
            content = _kept(cache, name) if cache else None
            if content is not None:
                # If it does not load, it was built on a machine that differs in what the name does not say.
                with contextlib.suppress(OSError):
                    return Loaded(self._open(content, mode))
            content, new_trouble = self._build(cache, name)
        trouble = printable(trouble or new_trouble)
        try:
            return Loaded(self._open(content, mode), (trouble,) if trouble else ())
        except OSError as error:
            raise BuildError(self._not_loadable(str(error))) from error

    def _build(self, cache: Folder | None, name: str) -> tuple[bytes, str]:
        """Compile the library, and keep it in the cache if that works; else say why not."""
        reason = ""
        for folder in itertools.chain([cache] if cache else [], _private_folder.temporary_folders()):
            try:
                with folder.workplace() as place:
                    content = compile_library(place, self.sources, self.tunings)
                    self._try(content, place)
                    if folder is cache:
                        return content, self._keep(content, place, cache, name)
                    return content, self._not_kept(reason)
            except OSError as error:
                reason = reason or f"`{folder.path}`: {reason_of(error)}"
        raise BuildError(
            f"there is no folder to compile `{self.name}` in ({reason}): set TMPDIR to one with some room"
        )

    def _keep(self, content: bytes, place: Folder, cache: Folder, name: str) -> str:
        try:
            place.write(name, content + _digest(content, name))
            cache.take(place, name)
        except OSError as error:
            path = f"`{cache.path}/{name}`"
            return self._not_kept(f"{path} cannot be replaced: {reason_of(error)}", f"remove {path}, or ")
        return ""

    def _try(self, content: bytes, place: Folder) -> None:
        """Raise :class:`BuildError` if what was compiled cannot be loaded."""
        command = [sys.executable, "-I", "-S", "-c", TRIAL, " ".join(self.symbols), *map(str, self.needed)]
        reason = ""
        with contextlib.closing(_copies(self.name, content)) as copies:
            for descriptor in copies:
                path = _private_folder.path_of(descriptor)
                try:
                    code, errors = run([*command, path], place, [descriptor], OPENBLAS_NUM_THREADS="1")
                except subprocess.TimeoutExpired:
                    code, errors = 1, "loading it takes forever"
                if code == 0:
                    return
                reason = reason or errors.rpartition("Error: ")[2].replace(path, "it") or f"signal {-code}"
        raise BuildError(self._not_loadable(reason))

    def _open(self, content: bytes, mode: int) -> ctypes.CDLL:
        """Map a copy of the library; raise ``OSError`` where that is not possible or something is missing."""
        reason = ""
        with contextlib.closing(_copies(self.name, content)) as copies:
            for descriptor in copies:
                # The loader takes a path that it knows for the library that it knows, although the number
                # stands for another file by now.
                folder, _, file = _private_folder.path_of(descriptor).rpartition("/")
                path = f"{folder}{'/.' * next(_loads)}/{file}"
                try:
                    functions = ctypes.CDLL(path, mode=mode)
                    for symbol in self.symbols:
                        getattr(functions, symbol)
                except (OSError, AttributeError) as error:
                    reason = reason or str(error).replace(path, "it")
                else:
                    return functions
        raise OSError(reason)

    def _not_kept(self, reason: str, remedy: str = "") -> str:
        return (
            f"`{self.name}` is compiled at every start, which takes a second or two, because the result "
            f"cannot be kept ({reason}): {remedy}set XDG_CACHE_HOME to a folder that only you can write to"
        )

    def _not_loadable(self, reason: str) -> str:
        return (
            f"what `{configured()}` made of `{self.name}` cannot be loaded ({reason}): set `CC` to a "
            "compiler for this machine, and TMPDIR to a folder from which programs can be run"
        )

    def _file_name(self) -> str:
        """Name everything that the library is made from and for."""
        words = (FLAGS, self.tunings, self.needed, self.symbols, configured())
        parts = [file.read_bytes() for file in (*self.sources, *self.headers)]
        parts += [repr(words).encode(errors="surrogateescape"), *_platform()]
        return f"{self.name}-{hashlib.sha256(b'/'.join(parts)).hexdigest()[:16]}.so"


def _kept(cache: Folder, name: str) -> bytes | None:
    """Return a library in the cache if it is there and as it was written."""
    with contextlib.suppress(OSError):
        stored = cache.read(name)
        content, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if content and digest == _digest(content, name):
            return content
    return None


def _digest(content: bytes, name: str) -> bytes:
    """Return what is written after a library, where a loader does not look."""
    return hashlib.sha256(name.encode() + b"/" + content).digest()


def _copies(name: str, content: bytes) -> Generator[int, None, None]:
    """Yield descriptors of private copies: in memory, then, where the system forbids that, in folders."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError), os.fdopen(os.memfd_create(f"akidb-{name}"), "wb") as file:
            file.write(content)
            file.flush()
            yield file.fileno()
    for folder in _private_folder.temporary_folders():
        with contextlib.suppress(OSError), folder.workplace() as place:
            place.write(name, content)
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=place.descriptor), "rb") as file:
                yield file.fileno()


def _platform() -> Iterator[bytes]:
    """Say what compiled code depends on: machines of different kinds can share a home folder."""
    yield repr((os.uname().machine, struct.calcsize("P"), platform.libc_ver())).encode()
    if sys.platform == "darwin":
        yield _processor_of_a_mac()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        wanted = (b"flags", b"Features", b"CPU part", b"model name")
        yield from sorted({line for line in information.read_bytes().splitlines() if line.startswith(wanted)})


def _processor_of_a_mac() -> bytes:
    """Return the processor's name; nothing where the system does not say."""
    name = ctypes.create_string_buffer(NAME_BYTES)
    size = ctypes.c_size_t(NAME_BYTES)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, 0)
    return name.value
