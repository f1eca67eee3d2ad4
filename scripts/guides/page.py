"""The commands of a page.

Every fenced block of the language ``sh`` is one, and every line of it is a command, a comment, or goes on
after a backslash. A block that begins with the comment ``# macOS only`` is left out. A command may end with a
comment that says what is expected of it:

* ``# 400 empty_input``: the status and the code that ``curl`` shows;
* ``# a model with prompts``: such a model is asked in place of the default one;
* ``# exit code 3``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAC_ONLY = "# macOS only"
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")
_PROGRAMS = (
    "akidb-gateway",
    "apt",
    "brew",
    "cargo",
    "curl",
    "git",
    "haproxy",
    "launchctl",
    "make",
    "sudo",
    "systemctl",
    "wrk",
)


@dataclass(frozen=True)
class Command:
    """A command with the line it begins in, and what its comment says."""

    line: int
    text: str
    comment: str

    @property
    def words(self) -> list[str]:
        """Return its words, as a shell splits them."""
        return shlex.split(self.text)

    @property
    def status(self) -> tuple[int, str] | None:
        """Return the HTTP status and the error code that are expected where they are not those of success."""
        found = re.fullmatch(r"(\d{3}) (\w+)", self.comment)
        return (int(found[1]), found[2]) if found else None

    @property
    def exit_code(self) -> int:
        """Return the exit code that is expected."""
        found = re.fullmatch(r"exit code (\d+)", self.comment)
        return int(found[1]) if found else 0

    @property
    def needs_prompts(self) -> bool:
        """Whether it needs a model that was trained with prompts."""
        return self.comment == "a model with prompts"


def commands(page: Path) -> list[Command]:
    """Return every command that can be run on this page, in its order."""
    text = page.read_text()
    found = []
    for block in _BLOCK.finditer(text):
        if block["language"] != "sh" or block["body"].lstrip().startswith(MAC_ONLY):
            continue
        first = text.count("\n", 0, block.start("body")) + 1
        lines = block["body"].split("\n")
        index = 0
        while index < len(lines):
            start, line = index, lines[index].strip()
            while line.endswith("\\"):
                index += 1
                line = f"{line[:-1].rstrip()} {lines[index].strip()}"
            index += 1
            if line and not line.startswith("#"):
                command, _, comment = line.partition("  # ")
                found.append(Command(first + start, command.strip(), comment.strip()))
    return found


def unmarked(page: Path) -> list[str]:
    """Return what looks like a command in a block that is not run; one with a placeholder is none yet."""
    found = []
    for block in _BLOCK.finditer(page.read_text()):
        if block["language"] in ("", "text", "shell", "bash", "console"):
            for line in block["body"].splitlines():
                program = line.strip().removeprefix("$ ").partition(" ")[0].rpartition("/")[2]
                if program in _PROGRAMS and "<" not in line:
                    found.append(line.strip())
    return found


def inline(page: Path) -> list[str]:
    """Return every span of code outside of blocks."""
    return [span["code"] for span in _INLINE.finditer(_BLOCK.sub("", page.read_text()))]
