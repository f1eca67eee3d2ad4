"""The report of a Mac's owner: its list is that of the page, and what is wrong is said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench.progress import Progress
from mac import __main__, checks, report
from mac.report import Check, NotApplicableError, go_through, page

PAGE = Path(__file__).parents[2] / "docs" / "MAC.md"


def fine() -> tuple[bool, str]:
    return True, "42 | 43"


def wrong() -> tuple[bool, str]:
    return False, f"0.5 {Path.home()}/secret"


def elsewhere() -> tuple[bool, str]:
    raise NotApplicableError("a toaster")


def broken() -> tuple[bool, str]:
    raise OSError("no\nsuch thing")


def test_the_page_has_the_list_of_the_program() -> None:
    text = PAGE.read_text()
    table = text.split("| check | what is done | expected |\n|---|---|---|\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| (.+?) \|", table, re.MULTILINE) == [check.name for check in checks.all_checks()]


def test_every_row_says_what_came_of_it() -> None:
    listed = [Check(find.__name__, "as it should be", find) for find in (fine, wrong, elsewhere, broken)]
    rows = go_through(listed, Progress())
    assert [row.verdict for row in rows] == [
        report.OK,
        report.NOT_OK,
        report.NOT_APPLICABLE,
        report.NOT_OK,
    ]
    lines = page(rows).splitlines()[-4:]
    assert [line.rsplit(" | ", 1)[0] for line in lines] == [
        r"| fine | as it should be | 42 \| 43 | ok",
        "| wrong | as it should be | 0.5 ~/secret | **not ok**",
        "| elsewhere | as it should be | a toaster | not applicable",
        "| broken | as it should be | OSError: no such thing | **not ok**",
    ]


@pytest.mark.parametrize(("finds", "code"), [([fine, elsewhere], 0), ([fine, wrong], 1), ([broken], 1)])
def test_a_wrong_figure_is_the_exit_code(
    finds: list[object], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = [Check(str(number), "", find) for number, find in enumerate(finds)]  # type: ignore[arg-type]
    monkeypatch.setattr(__main__, "all_checks", lambda: listed)
    assert __main__.main(["--out", str(tmp_path / "folder" / "report.md")]) == code
    assert (tmp_path / "folder" / "report.md").read_text().count("\n| ") == 1 + len(finds)


def test_parts_can_be_chosen_and_a_wrong_name_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "all_checks", lambda: [Check("one", "", fine), Check("two", "", wrong)])
    out = str(tmp_path / "report.md")
    assert __main__.main(["--only", "one", "--out", out]) == 0
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--only", "three", "--out", out])
    assert ended.value.code == 2
    assert "there are: one, two" in capsys.readouterr().err
