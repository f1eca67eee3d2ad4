"""The user's C compiler: which one it is, what it gets to see, and how it is run."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from akidb_sidecar._private_folder import is_open_to_all, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from akidb_sidecar._private_folder import Folder

FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
"""Without ``-Wall -Werror``: a warning that only a user's compiler gives must not cost them the kernels. The
tests compile with both (``test_native_sources.py``)."""
TUNINGS = (("-march=native",), ("-mcpu=native",), ())
"""In the order in which they are tried: not every compiler knows each of them on every machine."""
TIMEOUT_SECONDS = 60
TOOLS_TIMEOUT_SECONDS = 10
OUTPUT = "library.so"
LONGEST_REASON = 200

_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "SDKROOT", "DEVELOPER_DIR")
"""What a compiler may need besides ``PATH``: ``ccache`` its folder, a compiler outside the system its own
libraries, macOS its SDK. Nothing else is passed on: keys, and proxies with passwords, are none of its
business, and what changes the result (``CPATH``) would have to be part of the library's name."""


class BuildError(Exception):
    """The library is not available; the message is one line for a person, and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return one line that is safe on a terminal and in UTF-8, whatever bytes a path or a compiler had."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def reason_of(error: OSError) -> str:
    """Return why something failed, without the number and the name that the library adds."""
    return error.strerror or str(error)


def configured() -> str:
    """Return the compiler as the user wrote it."""
    return os.environ.get("CC", "").strip() or "cc"


def compile_library(place: Folder, sources: Sequence[Path], tunings: Sequence[Sequence[str]]) -> bytes:
    """Return the shared library, compiled in a folder of its own."""
    compiler = _find()
    reason = ""
    for flags in tunings:
        reason = _run([*compiler, *FLAGS, *flags, "-o", OUTPUT, *map(str, sources), "-lm"], place)
        with contextlib.suppress(OSError):
            if not reason and (content := place.read(OUTPUT)):
                return content
    raise BuildError(f"{_named()} failed: {reason or 'it made no library; is it a C compiler?'}")


def environment() -> dict[str, str]:
    """Return what programs that are started here may know of this process's environment."""
    passed = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Messages in English; temporary files in the current folder, which is the workplace and goes with it.
    return {**passed, "PATH": _search_path(), "LC_ALL": "C", "TMPDIR": "."}


def run(
    command: Sequence[str], place: Folder, descriptors: Sequence[int] = (), **additional: str
) -> tuple[int, str]:
    """Run a program in a folder and return its exit code, negative for a signal, and what it said on stderr.

    Raises :class:`subprocess.TimeoutExpired` when it does not end, with all its children ended.
    """
    with subprocess.Popen(  # noqa: S603 - the user's compiler with our own sources, or Python
        command,
        # The descriptor, not the path: nobody can put another folder in its place.
        cwd=path_of(place.descriptor),
        env={**environment(), **additional},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=tuple(descriptors),
        start_new_session=True,
        umask=0o077,
    ) as process:
        try:
            _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, printable(errors.decode(errors="replace"))


def _run(command: Sequence[str], place: Folder) -> str:
    """Run the compiler; return what was wrong, nothing if all went well."""
    try:
        code, errors = run(command, place)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{_named()} was not done after {TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{_named()} cannot be run: {reason_of(error)}") from error
    if code < 0:
        return f"it was ended by signal {-code}"
    return (errors[:LONGEST_REASON] or f"exit code {code}") if code else ""


def _find() -> list[str]:
    """Return the compiler's program, an absolute path, and its first arguments."""
    if sys.platform == "darwin":
        _check_developer_tools()
    written = configured()
    try:
        words = [written] if _which(written) else shlex.split(written)
    except ValueError as error:
        raise BuildError(
            f"{_named()} cannot be split into words ({error}): correct it or unset `CC`"
        ) from error
    program = _which(words[0]) if words else None
    if program is None:
        if os.environ.get("CC", "").strip():
            raise BuildError(f"there is no C compiler {_named()}: correct it or unset `CC`")
        raise BuildError(
            "there is no C compiler: install one (Debian: apt-get install gcc libc6-dev; macOS: "
            "xcode-select --install) or name yours in `CC`"
        )
    return [program, *words[1:]]


def _check_developer_tools() -> None:
    """Raise :class:`BuildError` on a Mac without them: a compiler that needs them opens a dialogue there."""
    program = _which("xcode-select")
    try:
        done = subprocess.run(  # noqa: S603 - the system's program
            [program or "/usr/bin/xcode-select", "-p"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TOOLS_TIMEOUT_SECONDS,
            check=False,
        )
        there = done.returncode == 0 and os.path.isdir(done.stdout.rstrip())  # noqa: PTH112 - bytes
    except (OSError, subprocess.TimeoutExpired):
        there = False
    if not there:
        raise BuildError(
            "the developer tools are not installed, without which no C compiler works on macOS: "
            "xcode-select --install"
        )


def _which(program: str) -> str | None:
    found = shutil.which(program, path=_search_path())
    return os.path.abspath(found) if found else None  # noqa: PTH100 - a link's name can matter


def _search_path() -> str:
    """Return ``PATH`` without what depends on the current folder or is open to everybody."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    kept = (entry for entry in entries if entry.startswith("/") and not is_open_to_all(entry))
    return os.pathsep.join(kept) or os.defpath


def _named() -> str:
    return f"`{configured()}`" + (" (from `CC`)" if os.environ.get("CC", "").strip() else "")
