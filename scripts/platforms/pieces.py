"""What the checks are made of: commands, and the tools and sources that they need."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.processes import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

WORKPLACE = REPOSITORY / "target" / "platforms"
"""Everything that is fetched or built, kept for the next time."""


class MissingError(Exception):
    """A piece is not available here; the message says which one and why, or how to get it."""


class FailedError(Exception):
    """A check found something, or a command failed; the message says which one."""


def need(program: str, package: str) -> None:
    """Say that a program is missing, and in which package of Debian it is."""
    if shutil.which(program) is None:
        raise MissingError(f"{program} is missing (Debian: apt-get install {package})")


def run(
    command: Sequence[str], folder: Path = REPOSITORY, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command whose output a person reads."""
    done = subprocess.run(  # noqa: S603 - commands of our own
        command, cwd=folder, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise FailedError(f"code {done.returncode} from `{shlex.join(command)}`")


def output(
    command: Sequence[str], folder: Path = REPOSITORY, environment: Mapping[str, str] | None = None
) -> str:
    """Return what a command writes to standard output."""
    done = subprocess.run(  # noqa: S603 - commands of our own
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise FailedError(f"code {done.returncode} from `{shlex.join(command)}`: {last}")
    return done.stdout


def make(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder that is filled once, and never seen half full."""
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        # Not in Python: a tree of 10,000 files takes it seconds.
        run(["rm", "-rf", str(unfinished)])
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(folder)
    return folder


def run_checks(checks: Mapping[str, Callable[[], None]]) -> int:
    """Run all checks, whatever becomes of those before; return the exit code.

    What cannot be checked for want of a piece is said loudly. In continuous integration that is a failure.
    """
    failed = False
    for name, check in checks.items():
        say(f"==> {name}")
        started = time.monotonic()
        try:
            check()
        except MissingError as error:
            say(f"WARNING: NOT CHECKED: {name}: {error}")
            failed |= bool(os.environ.get("CI"))
        except FailedError as error:
            say(f"error: {name}: {error}")
            failed = True
        else:
            say(f"{name}: ok, {time.monotonic() - started:.0f} s")
    return int(failed)


def say(line: str) -> None:
    """Write a line, before whatever the next command writes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
