from __future__ import annotations

import io

from akidb_sidecar import _printable
from akidb_sidecar._errors import ModelError

HOSTILE = "a\x1b]0;owned\x07\x9b31m\x7f\r\u202e\u2066\u2028\x85b"


def test_an_error_is_one_line_without_escape_sequences() -> None:
    message = ModelError("bad_model", f"`{HOSTILE}`\nhint: run this").message
    assert message.isprintable()
    assert message.startswith(r"`a\x1b]0;owned\x07\x9b31m\x7f\r\u202e\u2066\u2028\x85b` hint")
    assert _printable.line("modèle 中文 🙂") == "modèle 中文 🙂"


def test_progress_may_move_the_cursor_and_names_in_it_may_not() -> None:
    stream = io.StringIO()
    progress = _printable.Progress(stream)
    for piece in ("\r", "\rfile: 10%", "\n\x1b[A\x1b[A", f"\r{HOSTILE}", "\rx\x1b[A\n"):
        progress.write(piece)
    progress.flush()
    assert not progress.isatty()
    escaped = r"a\x1b]0;owned\x07\x9b31m\x7f" + "\r" + r"\u202e\u2066\u2028\x85b"
    assert stream.getvalue() == "\r\rfile: 10%\n\x1b[A\x1b[A\r" + escaped + "\rx\\x1b[A\n"
