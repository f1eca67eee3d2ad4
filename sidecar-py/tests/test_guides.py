"""What ``make check-guides`` finds on a page, and what ``make tune`` prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench.processes import REPOSITORY
from guides import check, page
from guides.page import Command
from guides.surroundings import Surroundings
from platforms.pieces import FailedError
from tune import __main__ as tune
from tune.settings import SETTINGS

PAGE = """# A page

```sh
make setup
# A comment.
curl -s localhost:8080/a \\
  -d 'x'  # 400 empty_input
```

1. In a list, and a short `make tune` in a line:

   ```sh
   false  # exit code 1
   ```

```sh
# macOS only
sudo launchctl list
```

```text
git clone <address> somewhere
```

```json
{"make": "nothing"}
```
"""


def written(tmp_path: Path, text: str = PAGE) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


def test_every_command_is_found_with_its_line_and_what_is_expected_of_it(tmp_path: Path) -> None:
    found = page.commands(written(tmp_path))
    assert found == [
        Command(4, "make setup", ""),
        Command(6, "curl -s localhost:8080/a -d 'x'", "400 empty_input"),
        Command(13, "false", "exit code 1"),
    ]
    assert [command.status for command in found] == [None, (400, "empty_input"), None]
    assert [command.exit_code for command in found] == [0, 0, 1]
    assert page.inline(written(tmp_path)) == ["make tune"]


def test_command_in_a_block_that_is_not_run_is_told(tmp_path: Path) -> None:
    assert page.unmarked(written(tmp_path)) == []
    hidden = (
        "```text\n$ curl -s localhost:8080/health\ntarget/release/akidb-gateway --model x\nplain words\n```\n"
    )
    assert len(page.unmarked(written(tmp_path, hidden))) == 2


@pytest.mark.parametrize("name", check.PAGES)
def test_every_guide_has_commands(name: str) -> None:
    assert len(page.commands(REPOSITORY / name)) >= 4


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        (Command(1, "true", ""), ""),
        (Command(1, "false", ""), "exit code 1"),
        (Command(1, "false", "exit code 1"), ""),
        (Command(1, "false | cat", ""), "exit code 1"),
        (Command(1, "echo status 500 >&2", ""), "status [500]"),
        (Command(1, "echo status 400 >&2; echo '\"empty_input\"'", "400 empty_input"), ""),
        (
            Command(1, "echo status 400 >&2; echo '\"other\"'", "400 empty_input"),
            "the code is not empty_input",
        ),
        (Command(1, "sudo systemctl start akidb-gateway", ""), ""),
    ],
)
def test_command_that_does_something_else_is_told(command: Command, wrong: str) -> None:
    with Surroundings() as surroundings:
        said = surroundings.run(command)
    assert said.startswith(wrong)
    assert bool(said) == bool(wrong)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("See `make nonsense`.", "nonsense"),
        ("Set `akidb_nonsense_total`.", "akidb_nonsense_total"),
        ("```text\ncurl localhost:8080\n```\n", "curl"),
    ],
)
def test_name_that_does_not_exist_fails(
    tmp_path: Path, text: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "output", lambda _words: "--workers --model")
    check.check_names(written(tmp_path, "`--workers 2` `make tune` `akidb_workers_ready` `--` \n"))
    with pytest.raises(FailedError, match=named):
        check.check_names(written(tmp_path, text))
    with pytest.raises(FailedError, match="--wrokers"):
        check.check_names(written(tmp_path, "`--wrokers 2`"))


def test_tables_of_tune_have_the_median_of_the_rounds() -> None:
    setting = SETTINGS[0]

    def one(rate: float) -> dict[str, dict[str, float]]:
        figures = {"texts_per_second": rate, "p50_ms": rate / 10, "p95_ms": rate / 5}
        return {load.title: figures for load in setting.loads} | {"memory": {"megabytes": 100.0}}

    measured = {value: [one(100.0), one(300.0), one(110.0)] for value in setting.values}
    lines = tune._page(setting, measured)
    assert len(lines) == 2 + len(setting.values)
    assert all("110.0 texts/s, p50 11.0 ms, p95 22.0 ms" in line and "100 MB" in line for line in lines[2:])
    overloads = {0.5: {"offered": 20, "answered": 12, "refused": 8, "p50_ms": 300.0, "p99_ms": 400.0}}
    assert [cell.strip() for cell in tune._overload_page(overloads)[2].split("|")][1:4] == [
        "0.5s",
        "20",
        "12",
    ]
