"""``make check-guides``: run every command of the guides, and look up the flags and targets they name."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING

from bench.processes import REPOSITORY, ChildError
from bench.systems import GATEWAY
from platforms.pieces import FailedError, need, output, run_checks, say

from guides import page
from guides.surroundings import Surroundings

if TYPE_CHECKING:
    from pathlib import Path

PAGES = (
    "README.md",
    "docs/MLX-QUICKSTART.md",
    "docs/MLX-DEPLOYMENT-GUIDE.md",
    "docs/MLX-PERFORMANCE-TUNING.md",
)
CI = REPOSITORY / ".ci" / "run"
METRICS = REPOSITORY / "docs" / "METRICS.md"
PROGRAMS = ("curl", "haproxy", "wrk")
"""What the guides need besides a checkout; the packages of Debian are called the same."""


def main() -> int:
    """Exit with 1 when a command of the guides fails."""
    checks = {f"{name}: flags and targets": partial(check_names, REPOSITORY / name) for name in PAGES}
    checks |= {f"{name}: commands": partial(check_commands, REPOSITORY / name) for name in PAGES}
    return run_checks(checks)


def check_names(path: Path) -> None:
    """Compare the flags and make's targets that a page names with those that there are."""
    flags = set()
    for words in ([], ["service", "install"], ["service", "print"], ["models", "list"], ["models", "pull"]):
        flags |= set(re.findall(r"--[a-z][a-z-]+", output([str(GATEWAY), *words, "--help"])))
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for code in page.inline(path):
        flag = re.match(r"--[a-z][a-z-]+", code)
        if flag and flag[0] not in flags:
            raise FailedError(f"{path.name}: no command of the gateway has the flag `{code}`")
        named = re.match(r"(?:[A-Z_]+=\S+ )?make ([a-z0-9-]+)", code)
        if named and named[1] not in targets:
            raise FailedError(f"{path.name}: make has no target `{named[1]}`")
    known = set(re.findall(r"akidb_[a-z_]+", METRICS.read_text()))
    for metric in re.findall(r"\bakidb_(?!sidecar)[a-z_]+", path.read_text()):
        if re.sub(r"_(bucket|sum|count)$", "", metric) not in known:
            raise FailedError(f"{path.name}: there is no metric `{metric}`")
    left = page.unmarked(path)
    if left:
        raise FailedError(f"{path.name}: not run, because its block is not of the language sh: `{left[0]}`")


def check_commands(path: Path) -> None:
    """Run every command of a page, in its order."""
    commands = page.commands(path)
    for program in PROGRAMS:
        if any(program in command.words for command in commands):
            need(program, program)
    by_ci = set(re.findall(r"^(?:[A-Z_]+=\S+ )?make ([a-z0-9-]+)", CI.read_text(), re.MULTILINE))
    with Surroundings() as surroundings:
        for command in commands:
            where = f"{path.name}:{command.line}: {command.text}"
            if command.words[0] == "make" and command.words[1] in by_ci:
                say(f"{where}   (by .ci/run)")
                continue
            say(where)
            try:
                wrong = surroundings.run(command)
            except ChildError as error:
                wrong = str(error)
            if wrong:
                raise FailedError(f"{where}: {wrong}")


if __name__ == "__main__":
    sys.exit(main())
