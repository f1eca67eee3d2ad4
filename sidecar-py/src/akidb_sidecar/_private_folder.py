"""Folders that nobody else can write to, held open so that they stay the ones that were checked.

Code is loaded from the cache, so whoever can write to it, or can swap a folder on the way to it, runs code as
this user. :func:`open_cache` therefore opens the real path step by step, follows no link, checks each folder
once it is open, and returns the last one: files are read and renamed relative to that descriptor, never by
path again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "akidb"
WORKPLACE_PREFIX = "akidb-build-"
ROOM_BYTES, ROOM_FILES = 4 * 1024 * 1024, 16
"""What a compilation needs on disk, several times over."""
LARGEST_FILE_BYTES = 64 * 1024 * 1024
ATTEMPTS = 10

_TO_PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_TO_USE = os.O_RDONLY | os.O_DIRECTORY
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_TO_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(OSError):
    """Somebody else could change what is in a folder or file."""


class Folder:
    """An open folder. Close it, or use it in a ``with`` statement."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        """For messages only."""

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def read(self, name: str) -> bytes:
        """Return a file that nobody else could have written."""
        with os.fdopen(os.open(name, _TO_READ, dir_fd=self.descriptor), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_FILE_BYTES:
                raise OSError(f"`{self.path}/{name}` is not a file of ours")
            _check(facts, f"{self.path}/{name}", sticky_is_enough=False)
            return file.read(LARGEST_FILE_BYTES)

    def write(self, name: str, content: bytes) -> None:
        """Write a new file and wait until it is on disk."""
        with os.fdopen(os.open(name, _TO_CREATE, 0o644, dir_fd=self.descriptor), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def take(self, place: Folder, name: str) -> None:
        """Move a file from another folder into this one, atomically and for good."""
        os.rename(name, name, src_dir_fd=place.descriptor, dst_dir_fd=self.descriptor)
        os.fsync(self.descriptor)

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Folder]:
        """Make a private folder with room for a compilation in this one, and remove it thereafter.

        It stays locked until then: an unlocked one is what a killed process left, see :meth:`clean`.
        """
        self.clean()
        name, place = self._make_workplace()
        with place:
            try:
                place.check_room()
                yield place
            finally:
                self._remove(name, place)

    def check_room(self) -> None:
        """Raise :class:`OSError` where a compiler could not write: what it says then would lead astray."""
        files = [f"room-{number}" for number in range(ROOM_FILES)]
        for file in files:
            self.write(file, bytes(ROOM_BYTES // ROOM_FILES))
        for file in files:
            os.unlink(file, dir_fd=self.descriptor)

    def _make_workplace(self) -> tuple[str, Folder]:
        for _ in range(ATTEMPTS):
            name = WORKPLACE_PREFIX + secrets.token_hex(8)
            os.mkdir(name, 0o700, dir_fd=self.descriptor)
            # Another process may take it for a leftover until it is locked, and remove it.
            with contextlib.suppress(FileNotFoundError):
                place = Folder(
                    os.open(name, _TO_USE | os.O_NOFOLLOW, dir_fd=self.descriptor), f"{self.path}/{name}"
                )
                if _lock(place.descriptor) != "held" and self._still_has(name, place):
                    return name, place
                os.close(place.descriptor)
        raise OSError(f"`{self.path}` does not keep what is made in it")

    def _still_has(self, name: str, place: Folder) -> bool:
        try:
            there = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = os.fstat(place.descriptor)
        return os.path.samestat(there, ours) and ours.st_uid == os.geteuid()

    def clean(self) -> None:
        """Remove the workplaces of killed processes, where folders can be locked."""
        for name in os.listdir(self.descriptor):  # noqa: PTH208 - no path
            if not name.startswith(WORKPLACE_PREFIX):
                continue
            with (
                contextlib.suppress(OSError),
                Folder(os.open(name, _TO_USE | os.O_NOFOLLOW, dir_fd=self.descriptor), name) as leftover,
            ):
                facts = os.fstat(leftover.descriptor)
                if facts.st_uid == os.geteuid() and _lock(leftover.descriptor) == "locked":
                    self._remove(name, leftover)

    def _remove(self, name: str, folder: Folder) -> None:
        """Remove a folder, even if a compiler that outlived its parent still writes to it."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(OSError):
                for entry in os.listdir(folder.descriptor):  # noqa: PTH208 - no path
                    shutil.rmtree(f"{path_of(folder.descriptor)}/{entry}", ignore_errors=True)
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                        os.unlink(entry, dir_fd=folder.descriptor)
                os.rmdir(name, dir_fd=self.descriptor)
                return


def open_cache() -> Folder:
    """Open the folder of compiled libraries, making it where it is missing; raise :class:`OSError`.

    Its files may be used; whether it can be written to shows when it is.
    """
    path = os.path.realpath(os.path.join(_cache_home(), NAME))  # noqa: PTH118 - as the system resolves it
    return Folder(_open_trusted(path), path)


def temporary_folders() -> Iterator[Folder]:
    """Open the folders for temporary files, one after the other.

    They may be anybody's: what is used in them is a workplace, through its descriptor. On macOS, where a
    descriptor leads to a path and no further, only those where nobody else can swap a workplace for another.
    """
    for path in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 - see above
        with contextlib.suppress(OSError):
            if os.path.isabs(path):  # noqa: PTH117
                with Folder(_open_temporary(path), path) as folder:
                    yield folder


def _open_temporary(path: str) -> int:
    if sys.platform == "darwin":
        return _open_trusted(os.path.realpath(path, strict=True), sticky_is_enough=True)
    return os.open(path, _TO_USE)


def is_open_to_all(path: str) -> bool:
    """Whether every user could put something into a folder, or another folder in its place."""
    folder = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        return any(
            step.stat().st_mode & stat.S_IWOTH and (step == folder or not step.stat().st_mode & stat.S_ISVTX)
            for step in (folder, *folder.parents)
        )
    return False


def path_of(descriptor: int) -> str:
    """Return a path that leads to an open file or folder, whatever was renamed meanwhile."""
    if sys.platform == "darwin":
        return fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()
    return f"/proc/self/fd/{descriptor}"


def _cache_home() -> str:
    """Return the user's folder for caches; as the XDG specification has it, relative paths do not count."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # noqa: PTH117
        return given
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):  # noqa: PTH117
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise FileNotFoundError(f"user {os.getuid()} has no home folder") from None
    return f"{home}/.cache"


def _open_trusted(path: str, *, sticky_is_enough: bool = False) -> int:
    """Open a folder of which every step is this user's or root's and nobody else's to write to.

    ``sticky_is_enough`` says whether others may make new entries in it.
    """
    steps = [step for step in path.split("/") if step]
    current, seen = os.open("/", _TO_PASS_THROUGH), "/"
    try:
        _check(os.fstat(current), seen, sticky_is_enough=True)
        for number, step in enumerate(steps, start=1):
            seen = f"{seen.rstrip('/')}/{step}"
            try:
                above, current = current, _open_or_make(step, current)
            except OSError as error:
                raise OSError(f"`{seen}`: {error.strerror}") from error
            os.close(above)
            _check(os.fstat(current), seen, sticky_is_enough=sticky_is_enough or number < len(steps))
        return os.open(".", _TO_USE, dir_fd=current)
    finally:
        os.close(current)


def _open_or_make(name: str, parent: int) -> int:
    try:
        return os.open(name, _TO_PASS_THROUGH, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        return os.open(name, _TO_PASS_THROUGH, dir_fd=parent)


def _check(facts: os.stat_result, path: str, *, sticky_is_enough: bool) -> None:
    """Raise :class:`UntrustedError` where somebody else could replace what is there.

    In a folder with the sticky bit, such as ``/tmp``, others can make new entries but not replace ours.
    """
    if facts.st_uid not in (0, os.geteuid()):
        raise UntrustedError(f"`{path}` belongs to user {facts.st_uid}")
    if facts.st_mode & _OTHERS_WRITE and not (sticky_is_enough and facts.st_mode & stat.S_ISVTX):
        raise UntrustedError(f"others may write to `{path}` (mode {stat.S_IMODE(facts.st_mode):04o})")


def _lock(descriptor: int) -> Literal["locked", "held", "impossible"]:
    """Lock a folder for as long as the descriptor is open."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "impossible"
    return "locked"
