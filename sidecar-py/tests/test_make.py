"""What `make` does where it has to know the machine."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from conftest import TESTS
from native_setup import script

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("system", "workers"),
    [("Linux x86_64", "--workers 2"), ("Linux aarch64", "--workers 2"), ("Darwin arm64", "")],
)
def test_the_one_gpu_of_apple_silicon_gets_one_worker(system: str, workers: str, tmp_path: Path) -> None:
    script(tmp_path / "uname", f'test "$*" = -sm && echo "{system}"')
    done = subprocess.run(
        ["make", "--dry-run", "run", "ARGS=--listen 127.0.0.1:9"],  # noqa: S607
        cwd=TESTS.parent.parent,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    )
    (command,) = [line for line in done.stdout.splitlines() if "exec target/release/akidb-gateway" in line]
    assert (
        " ".join(command.split("--model all-minilm-l6-v2")[1].split())
        == f"{workers} --listen 127.0.0.1:9".strip()
    )
