from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from platforms import pieces
from platforms.pieces import FailedError, MissingError


def passes() -> None:
    pass


def finds_something() -> None:
    raise FailedError("two lints")


def lacks_a_piece() -> None:
    raise MissingError("there is no compiler")


@pytest.mark.parametrize(
    ("is_ci", "check", "code", "said"),
    [
        ("", passes, 0, "first: ok, 0 s"),
        ("1", passes, 0, "first: ok, 0 s"),
        ("", finds_something, 1, "error: first: two lints"),
        ("", lacks_a_piece, 0, "WARNING: NOT CHECKED: first: there is no compiler"),
        ("1", lacks_a_piece, 1, "WARNING: NOT CHECKED: first: there is no compiler"),
    ],
)
def test_all_checks_run_and_a_missing_piece_fails_in_continuous_integration(  # noqa: PLR0917
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_ci: str,
    check: object,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("CI", is_ci)
    assert callable(check)
    assert pieces.run_checks({"first": check, "second": passes}) == code
    assert capsys.readouterr().out.splitlines() == ["==> first", said, "==> second", "second: ok, 0 s"]


def test_a_folder_that_was_not_filled_is_filled_the_next_time(tmp_path: Path) -> None:
    def break_off(folder: Path) -> None:
        (folder / "half").touch()
        raise FailedError("the network is down")

    folder = tmp_path / "piece"
    with pytest.raises(FailedError):
        pieces.make(folder, break_off)
    assert not folder.exists()
    pieces.make(folder, lambda unfinished: (unfinished / "whole").touch())
    pieces.make(folder, break_off)
    assert [file.name for file in folder.iterdir()] == ["whole"]


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="code 3 from `sh -c 'echo broken >&2; exit 3'`: broken"):
        pieces.output(["sh", "-c", "echo broken >&2; exit 3"], tmp_path)
