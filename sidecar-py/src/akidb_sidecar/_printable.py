"""Text that others wrote, for people to read: with nothing in it that a terminal would obey."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

_HAZARDS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_IN_A_LINE = re.compile(f"[{_HAZARDS}]")
_IN_PROGRESS = re.compile(rf"(?![\n\r\t])[{_HAZARDS}]")
_CURSOR_UP = re.compile(r"\n*(\x1b\[A)+")


def line(text: str) -> str:
    r"""Return text in one line, with control characters, and those that turn writing around, as ``\x1b``."""
    return _IN_A_LINE.sub(_escape, " ".join(text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Progress:
    """A stream on the way to a terminal. Progress bars may go back to the start of a line, or up a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what is printable. Moves of the cursor come in pieces of their own, file names never do."""
        return self._stream.write(text if _CURSOR_UP.fullmatch(text) else _IN_PROGRESS.sub(_escape, text))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the stream's own
        return getattr(self._stream, name)
